"""Features of a configuration: what the surrogate sees.

They respect the structure: what is absent is 0, whatever its parameters would be, and a size
counts by what it adds at its place. So one GP covers every method, and baselines that lie outside
the space have features as well. Counts enter as logarithms, as their effect is nearer to that.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import TRAINING_OPTIONS, Configuration, Group
from autopeft.searchers.base import Problem
from autopeft.searchers.coverage import coverage
from autopeft.space.schema import Scalar

Vector = NDArray[np.float64]

DENSITY_UNIT = 1e-6
"""A density counts as a number of these, so that its logarithm is positive: absent is 0."""

RATES = ("ffn_masking", "ffn_dropping")
"""Training options that are shares."""

LEAST_WEIGHT = 1e-3
"""A weight of the density loss counts as a number of these, so that none at all is 0."""

LEARNING_RATE_CENTRE = 1e-3
"""Learning rates count in decades from here: the middle of what PEFT methods use."""

REMEMBERED = 20_000
"""Configurations whose features are kept; a few megabytes."""


def describe(problem: Problem, configuration: Configuration) -> dict[str, float]:
    """The named features of a configuration; a name that is missing has the value 0."""
    params = problem.site_params(configuration)
    features = {"params": math.log10(1.0 + sum(params.values()))}
    features |= _by_place(params)
    features |= _depth(params, len(problem.anatomy.layers))
    features |= coverage(params, problem.anatomy.importance)
    for method in configuration.methods:
        groups = tuple(group for group in configuration.groups if group.method == method)
        alone = replace(configuration, groups=groups)
        total = sum((params if alone == configuration else problem.site_params(alone)).values())
        features[f"method {method}"] = math.log1p(total)
        features |= _settings(method, groups)
    features |= _training(configuration)
    # Adam moves every weight by about the rate, so outputs move with the root of their number.
    features["movement"] = features["learning rate"] + features["params"] / 2.0
    for name, value in configuration.sparsity:
        features |= _numbers(f"sparsity {name}", value)
    return features


def _by_place(params: Mapping[tuple[int, str], int]) -> dict[str, float]:
    """Per layer and per role: log(1 + parameters)."""
    counts: dict[str, int] = defaultdict(int)
    for (layer, role), count in params.items():
        counts[f"layer {layer}"] += count
        counts[f"role {role}"] += count
    return {name: math.log1p(count) for name, count in counts.items()}


def _depth(params: Mapping[tuple[int, str], int], n_layers: int) -> dict[str, float]:
    """How far gradients reach down (1 = to the first layer), and the share of layers in use."""
    layers = sorted({layer for layer, _ in params})
    if not layers:
        return {}
    return {"reach": 1.0 - layers[0] / n_layers, "layers": len(layers) / n_layers}


def _settings(method: str, groups: Iterable[Group]) -> dict[str, float]:
    """The method's settings, averaged over the layers that it occupies."""
    totals: dict[str, float] = defaultdict(float)
    n_layers = 0
    for group in groups:
        n_layers += len(group.layers)
        for name, value in _relative(dict(group.settings)).items():
            for key, number in _numbers(f"{method} {name}", value).items():
                totals[key] += number * len(group.layers)
    return {key: total / n_layers for key, total in totals.items()}


def _relative(settings: dict[str, Scalar]) -> dict[str, Scalar]:
    """Settings as what matters: logarithms of a density, and of alpha relative to the rank."""
    density = settings.get("density")
    if isinstance(density, int | float) and density > 0:
        return settings | {"density": math.log1p(density / DENSITY_UNIT)}
    alpha, rank = settings.get("alpha"), settings.get("rank")
    if isinstance(alpha, int | float) and isinstance(rank, int | float) and rank > 0 < alpha:
        return settings | {"alpha": math.log2(alpha / rank)}
    return settings


def _numbers(name: str, value: Scalar) -> dict[str, float]:
    """A setting as numbers: a word is a flag, a size a logarithm, anything else itself."""
    if isinstance(value, str):
        return {f"{name} {value}": 1.0}
    if isinstance(value, int) and not isinstance(value, bool):
        return {name: math.log1p(value) if value >= 0 else float(value)}
    return {name: float(value)}


def _training(configuration: Configuration) -> dict[str, float]:
    learning_rate = configuration.training_value("learning_rate")
    decades = math.log10(learning_rate / LEARNING_RATE_CENTRE) if learning_rate > 0 else -9.0
    options = {name: float(value) for name, value in configuration.training}
    return _options(options) | {
        "learning rate": decades,
        "weight decay": configuration.training_value("weight_decay"),
        "warm-up": configuration.training_value("warmup_ratio"),
    }


def _options(training: Mapping[str, float]) -> dict[str, float]:
    """Options that are on: rates as they are, weights and epsilons by their logarithms."""
    features = {f"option {name}": training[name] for name in RATES if name in training}
    if weight := training.get("density_weight"):
        epsilon = training.get("density_epsilon", TRAINING_OPTIONS["density_epsilon"])
        features["option density_weight"] = math.log1p(weight / LEAST_WEIGHT)
        features["option density_epsilon"] = math.log10(epsilon)
    return features


class Features:
    """Turns configurations into the rows of a matrix; each is described once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._known: dict[Configuration, dict[str, float]] = {}

    def describe(self, configuration: Configuration) -> Mapping[str, float]:
        """`describe`, remembered."""
        if configuration not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[configuration] = describe(self._problem, configuration)
        return self._known[configuration]

    def columns(self, configurations: Iterable[Configuration]) -> tuple[str, ...]:
        """The names of all features that some of the configurations have, sorted."""
        return tuple(sorted({name for each in configurations for name in self.describe(each)}))

    def vector(self, configuration: Configuration, columns: Sequence[str]) -> Vector:
        """The configuration as a `[len(columns)]` float64 vector; absent = 0."""
        features = self.describe(configuration)
        return np.array([features.get(name, 0.0) for name in columns], dtype=np.float64)

    def matrix(
        self, configurations: Sequence[Configuration], columns: Sequence[str]
    ) -> NDArray[np.float64]:
        """The configurations as the rows of an `[n, len(columns)]` float64 matrix."""
        rows = [self.vector(each, columns) for each in configurations]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(columns))
