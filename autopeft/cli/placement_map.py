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
    shown = (_shown(size) for size in placement.sizes.values())
    cell_width = 1 + max(*map(len, shown), len(str(placement.n_layers - 1))) + 1
    per_line = max(1, (width - name_width - 1) // cell_width)
    for first in range(0, placement.n_layers, per_line):
        layers = range(first, min(first + per_line, placement.n_layers))
        yield _line("layer", [str(layer) for layer in layers], name_width, cell_width)
        for row in placement.rows:
            sizes = [placement.sizes.get((row, layer), 0) for layer in layers]
            cells = [_cell(size, placement, ascii_only=ascii_only) for size in sizes]
            yield _line(row, cells, name_width, cell_width)


def _line(name: str, cells: list[str], name_width: int, cell_width: int) -> str:
    return f"{name:<{name_width}} {''.join(f'{cell:>{cell_width}}' for cell in cells)}"


def _cell(size: int | float, placement: PlacementMap, *, ascii_only: bool) -> str:
    if not size:
        return "." if ascii_only else "·"
    alike = (each for each in placement.sizes.values() if isinstance(each, type(size)))
    return _shown(size) if ascii_only else f"{_block(size, max(alike))}{_shown(size)}"


def _shown(size: int | float) -> str:
    """A whole size as it is, a density in two digits."""
    return f"{size:.2g}" if isinstance(size, float) else str(size)


def _block(size: int | float, largest: int | float) -> str:
    """The highest block for the largest size of its kind, one step lower for each halving."""
    height = len(_BLOCKS) - 1 - math.floor(math.log2(largest / size))
    return _BLOCKS[max(0, height)]
