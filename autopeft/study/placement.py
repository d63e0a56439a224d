"""The placement map: a configuration drawn as layers x sites, for terminals and dashboards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.configuration import Configuration
from autopeft.space.schema import Scalar
from autopeft.study.records import TrialRecord

SIZE_NAMES = ("rank", "size", "length", "density", "channels", "side", "coefficients", "blocks")
"""Names that methods give to their size, tried in this order."""

RESOLVED = "resolved"
"""The key of a trial's details under which stands what its sparsity rule made of it."""


def resolved_details(configuration: Configuration, resolved: Configuration) -> dict[str, Any]:
    """What a trial keeps of what its configuration comes to; {} where that is itself."""
    if resolved.groups == configuration.groups:
        return {}
    plain = resolved.to_dict()
    return {RESOLVED: {method: plain[method] for method in resolved.methods}}


def placed(trial: TrialRecord) -> Configuration:
    """What sits where in a trial: under its sparsity rule, where the trial keeps that."""
    groups = trial.details.get(RESOLVED)
    if not isinstance(groups, Mapping):
        return trial.configuration
    return Configuration.from_dict({**groups, "training": dict(trial.configuration.training)})


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
    sizes: dict[tuple[str, int], int | float]

    def matrix(self) -> list[list[int | float]]:
        """Sizes as rows x layers, 0 where nothing sits."""
        return [
            [self.sizes.get((row, layer), 0) for layer in range(self.n_layers)]
            for row in self.rows
        ]


def placement_map(configuration: Configuration, n_layers: int) -> PlacementMap:
    """The map of a configuration on a backbone of `n_layers` layers."""
    sizes: dict[tuple[str, int], int | float] = {}
    for group in configuration.groups:
        settings = dict(group.settings)
        size = next((_number(settings[name]) for name in SIZE_NAMES if name in settings), 1)
        for site in group.sites or ("",):
            row = f"{group.method} {site}".strip()
            sizes.update({(row, layer): size for layer in group.layers})
    rows = tuple(dict.fromkeys(row for row, _ in sizes))
    return PlacementMap(rows, n_layers, sizes)


def _number(size: Scalar) -> int | float:
    return float(size) if isinstance(size, float) else int(size)
