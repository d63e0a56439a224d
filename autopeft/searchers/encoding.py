"""The surrogate's view of configurations: scaled features, the rung, and the known costs.

Features come in groups (one per layer, one per role, ...). A group of g features is scaled down by
sqrt(g), so that a priori every group matters as much as a single feature such as the learning
rate: with few measurements the many details would otherwise drown what counts.

Notation: `X` is `[n, d + 1 + k]`: `d` features scaled to the range that the space gives them, one
column for the rung (the share of the budget, as a logarithm; 1 at the full budget), and the exact
utilities of the `k` known objectives, which only the deterministic models read.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration
from autopeft.searchers.base import Problem
from autopeft.searchers.features import Features
from autopeft.searchers.front import utility

Matrix = NDArray[np.float64]

SINGLE = frozenset({"params", "reach", "layers", "learning rate", "weight decay", "warm-up"})
"""Features that are a group each."""

FAMILIES = frozenset({"layer", "role", "method"})
"""First words of features that form a group; all others are settings."""


@dataclass(frozen=True)
class Encoding:
    """How configurations become rows of `X`, fixed for one `ask`.

    Attributes:
        problem: Gives the known objectives.
        features: Gives the features.
        columns: Names of the features that vary.
        low: Smallest value of each.
        width: Range of each, times the square root of the size of its group.
        n_groups: Groups of features, the rung among them.
        lowest_rung: Where the rung's column is 0; 1.0 where only full trials were told.
        known: Positions in the frame of the objectives that are known in closed form.
    """

    problem: Problem
    features: Features
    columns: tuple[str, ...]
    low: NDArray[np.float64]
    width: NDArray[np.float64]
    n_groups: int
    lowest_rung: float
    known: tuple[int, ...]

    @classmethod
    def of(
        cls,
        problem: Problem,
        features: Features,
        configurations: Sequence[Configuration],
        lowest_rung: float,
    ) -> "Encoding":
        """The encoding for these configurations; features that are constant there are dropped."""
        columns = features.columns(configurations)
        F = features.matrix(configurations, columns)
        kept = _informative(F)
        names = tuple(columns[index] for index in kept)
        groups = Counter(map(_group, names))
        crowd = np.array([math.sqrt(groups[_group(name)]) for name in names])
        known = problem.known(configurations[0])
        return cls(
            problem=problem,
            features=features,
            columns=names,
            low=F.min(axis=0)[kept],
            width=np.ptp(F, axis=0)[kept] * crowd,
            n_groups=len(groups) + 1,
            lowest_rung=lowest_rung,
            known=tuple(i for i, frame in enumerate(problem.frame) if frame.name in known),
        )

    @property
    def n_inputs(self) -> int:
        """Columns that a GP reads: the features and the rung."""
        return len(self.columns) + 1

    def rows(
        self, configurations: Sequence[Configuration], rungs: Sequence[float] | None = None
    ) -> Matrix:
        """`X` of the configurations at these rungs, or all at the full budget."""
        F = (self.features.matrix(configurations, self.columns) - self.low) / self.width
        at = np.array([self._rung(rung) for rung in rungs or [1.0] * len(configurations)])
        costs = np.array([self._costs(each) for each in configurations]).reshape(
            len(F), len(self.known)
        )
        return np.concatenate([F, at.reshape(-1, 1), costs], axis=1)

    def _rung(self, rung: float) -> float:
        if self.lowest_rung >= 1.0:
            return 1.0
        return 1.0 - math.log(min(rung, 1.0)) / math.log(self.lowest_rung)

    def _costs(self, configuration: Configuration) -> list[float]:
        values: Mapping[str, float] = self.problem.known(configuration)
        frames = [self.problem.frame[index] for index in self.known]
        return [utility(frame, values[frame.name]) for frame in frames]


def _informative(F: Matrix) -> list[int]:
    """Columns that vary, without those that are an earlier one rescaled."""
    centred = F - F.mean(axis=0)
    norms = np.sqrt((centred**2).sum(axis=0))
    kept: list[int] = []
    for index in np.flatnonzero(norms > 1e-9 * (1.0 + np.abs(F).max(axis=0))):
        unit = centred[:, index] / norms[index]
        if all(abs(unit @ centred[:, other]) < 0.999 * norms[other] for other in kept):
            kept.append(int(index))
    return kept


def _group(name: str) -> str:
    """The group of a feature: `layer 3` is of `layer`; settings of all methods are one group."""
    first = name.split(" ", 1)[0]
    if name in SINGLE:
        return name
    return first if first in FAMILIES else "settings"
