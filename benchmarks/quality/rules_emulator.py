"""The emulator of tables of the space `importance`: other plain features, all else alike.

Sizes may be densities, sites may be chosen one by one, and rules change what trains; so sizes by
layer and role are counted in the parameters that there are under the rule.
"""

import math
from collections import defaultdict

import pandas as pd

from autopeft.configuration import Configuration, Group
from autopeft.searchers.base import Problem
from benchmarks.quality.emulator import Emulator, Table
from benchmarks.quality.kept_importance import KEPT

DENSITY_UNIT = 1e-4
"""A density counts as a number of these: the least of the space is 1."""


class RulesEmulator(Emulator):
    """Curves of configurations with rules, single sites and densities."""

    def _plain(self, configuration: Configuration) -> dict[str, float]:
        """Rule, sizes by method, parameters by layer and role, the learning rate, all in all."""
        rate = math.log10(configuration.training_value("learning_rate"))
        params = self._problem.site_params(configuration)
        whole = math.log10(1 + sum(params.values()))
        found = {
            "learning rate": rate,
            "parameters": whole,
            "update": rate + whole / 2,
            "lowest": float(min((layer for layer, _ in params), default=0)),
        }
        counts: dict[str, int] = defaultdict(int)
        for (layer, role), count in params.items():
            counts[f"@{layer}"] += count
            counts[f"@{role}"] += count
        found |= {name: math.log2(1 + count) for name, count in counts.items()}
        for name, value in configuration.sparsity:
            found |= {f"{name} {value}": 1.0} if isinstance(value, str) else {name: float(value)}
        for group in configuration.groups:
            _add(found, group, rate)
        return found


def _add(found: dict[str, float], group: Group, rate: float) -> None:
    """A group's features; of those that differ in places alone, places add up."""
    method, settings = group.method, dict(group.settings)
    size = _size(group)
    places = len(group.layers) * max(1, len(group.sites))
    found[f"{method} size"] = math.log2(1 + size)
    found[f"{method} places"] = found.get(f"{method} places", 0.0) + places
    found[f"{method} update"] = rate + math.log10(1 + size * found[f"{method} places"]) / 2
    top = float(1 + max(group.layers))
    found[f"{method} top"] = max(found.get(f"{method} top", 0.0), top)
    if "granularity" in settings:
        found[f"{method} {settings['granularity']}"] = 1.0


def _size(group: Group) -> float:
    settings = dict(group.settings)
    if "density" in settings:
        return float(settings["density"]) / DENSITY_UNIT
    return next(float(settings[name]) for name in ("rank", "size", "length") if name in settings)


def emulator_of(rows: pd.DataFrame, problem: Problem) -> Emulator:
    """The emulator of a recorded table."""
    kind = RulesEmulator if KEPT in rows.attrs else Emulator
    return kind(Table.of(rows), problem)
