"""The placement map in the terminal: layers across, methods and sites down, sizes in the cells.

A cell shows a block that grows with the size (by powers of two) and the size itself; where the
terminal has no blocks, the size alone.
"""

import math
from collections.abc import Iterator

from autopeft.study.placement import PlacementMap

_BLOCKS = "▁▂▃▄▅▆▇█"


def placement_lines(placement: PlacementMap, *, width: int, ascii_only: bool) -> Iterator[str]:
    """The lines of the drawing, layers wrapped to the width.

    Args:
        placement: What sits where.
        width: Columns that there are.
        ascii_only: Draw without block characters.
    """
    if not placement.rows:
        yield "(nothing is placed: the head alone is trained)"
        return
    name_width = max(len("layer"), *(len(row) for row in placement.rows))
    largest = max(placement.sizes.values())
    cell_width = 1 + max(len(str(largest)), len(str(placement.n_layers - 1))) + 1
    per_line = max(1, (width - name_width - 1) // cell_width)
    for first in range(0, placement.n_layers, per_line):
        layers = range(first, min(first + per_line, placement.n_layers))
        yield _line("layer", [str(layer) for layer in layers], name_width, cell_width)
        for row in placement.rows:
            sizes = [placement.sizes.get((row, layer), 0) for layer in layers]
            cells = [_cell(size, largest, ascii_only=ascii_only) for size in sizes]
            yield _line(row, cells, name_width, cell_width)


def _line(name: str, cells: list[str], name_width: int, cell_width: int) -> str:
    return f"{name:<{name_width}} {''.join(f'{cell:>{cell_width}}' for cell in cells)}"


def _cell(size: int, largest: int, *, ascii_only: bool) -> str:
    if not size:
        return "." if ascii_only else "·"
    return str(size) if ascii_only else f"{_block(size, largest)}{size}"


def _block(size: int, largest: int) -> str:
    """The highest block for the largest size, one step lower for each halving."""
    height = len(_BLOCKS) - 1 - math.floor(math.log2(largest / size))
    return _BLOCKS[max(0, height)]
