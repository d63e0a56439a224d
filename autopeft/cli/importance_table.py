"""An importance map in the terminal: layers down, sites across, a block and a number per cell.

A cell is a site's mean score per weight, relative to the largest of the map, as a large matrix has
a large sum whatever its weights are worth; the last column is the layer's share of the whole, sums
over all of its weights. Where the terminal has no blocks, the numbers stand alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.importance import ImportanceMap

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = ("dim", "", "cyan", "bold cyan")
_BAR = 16


def importance_table(found: ImportanceMap, score: str, *, ascii_only: bool) -> "Table":
    """The map of one score.

    Args:
        found: The map.
        score: Which score.
        ascii_only: Draw without block characters.
    """
    from autopeft.cli.tables import plain_table

    means, layers = site_means(found, score), found.layers(score)
    roles = roles_of(found, score)
    top, whole = max(means.values()) or 1.0, sum(layers.values()) or 1.0
    table = plain_table("layer", *roles, "share of the whole", right=("layer", *roles))
    for layer in sorted(layers, reverse=True):
        cells = [_cell(means.get((layer, role)), top, ascii_only=ascii_only) for role in roles]
        share = layers[layer] / whole
        bar = ("#" if ascii_only else "█") * round(_BAR * share / (max(layers.values()) / whole))
        table.add_row(str(layer), *cells, f"{share:6.1%} {bar}")
    return table


def roles_of(found: ImportanceMap, score: str) -> Sequence[str]:
    """The sites that any layer has."""
    return sorted({role for _, role in found.of(score)}, key=LINEAR_ROLES.index)


def site_means(found: ImportanceMap, score: str) -> dict[tuple[int, str], float]:
    """Mean score per weight of every site."""
    return {
        key: own.total / (len(own.inputs) * len(own.outputs))
        for key, own in found.of(score).items()
    }


def _cell(mean: float | None, top: float, *, ascii_only: bool) -> "Text":
    from rich.text import Text

    if mean is None:
        return Text("")
    value = mean / top
    block = "" if ascii_only else _BLOCKS[min(int(value * len(_BLOCKS)), len(_BLOCKS) - 1)] + " "
    style = _STYLES[min(int(value * len(_STYLES)), len(_STYLES) - 1)]
    return Text(f"{block}{value:.2f}", style=style)
