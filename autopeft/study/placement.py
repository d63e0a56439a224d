"""The placement map: a configuration drawn as layers x sites, for terminals and dashboards."""

from dataclasses import dataclass

from autopeft.configuration import Configuration

SIZE_NAMES = ("rank", "size", "length")
"""Names that methods give to their size, tried in this order."""


@dataclass(frozen=True)
class PlacementMap:
    """Where a configuration sits.

    Attributes:
        rows: `method site` (or `method` alone where it implies its place), in a stable order.
        n_layers: Columns: layers 0 .. n_layers - 1.
        sizes: Size of the method by (row, layer); absent where nothing sits.
    """

    rows: tuple[str, ...]
    n_layers: int
    sizes: dict[tuple[str, int], int]

    def matrix(self) -> list[list[int]]:
        """Sizes as rows x layers, 0 where nothing sits."""
        return [
            [self.sizes.get((row, layer), 0) for layer in range(self.n_layers)]
            for row in self.rows
        ]


def placement_map(configuration: Configuration, n_layers: int) -> PlacementMap:
    """The map of a configuration on a backbone of `n_layers` layers."""
    sizes: dict[tuple[str, int], int] = {}
    for group in configuration.groups:
        settings = dict(group.settings)
        size = next((int(settings[name]) for name in SIZE_NAMES if name in settings), 1)
        for site in group.sites or ("",):
            row = f"{group.method} {site}".strip()
            sizes.update({(row, layer): size for layer in group.layers})
    rows = tuple(dict.fromkeys(row for row, _ in sizes))
    return PlacementMap(rows, n_layers, sizes)
