"""The surrogate's view of configurations: scaled features, and the known costs beside them.

Features come in groups (one per layer, one per role, ...). A group of g features is scaled down by
sqrt(g), so that a priori every group matters as much as a single feature such as the learning
rate: with few measurements the many details would otherwise drown what counts. The coarse features
(how much is trained, where it begins, how fast) come first: the surrogate's first kernel reads
them alone.
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

SINGLE = frozenset(
    {
        "params",
        "reach",
        "layers",
        "coverage",
        "covered",
        "learning rate",
        "movement",
        "weight decay",
        "warm-up",
    }
)
"""Features that are a group each."""

FAMILIES = frozenset({"layer", "role", "method", "activation", "sparsity", "option"})
"""First words of features that form a group; all others are settings."""


@dataclass(frozen=True)
class Encoding:
    """How configurations become rows, fixed for one `ask`.

    Attributes:
        problem: Gives the known objectives.
        features: Gives the features.
        columns: Names of the `d` features that vary, coarse ones first.
        low: `[d]` smallest value of each.
        width: `[d]` range of each, times the square root of the size of its group.
        n_coarse: How many of them are coarse.
        n_groups: Groups of features.
        known: Positions in the frame of the objectives that are known in closed form.
    """

    problem: Problem
    features: Features
    columns: tuple[str, ...]
    low: NDArray[np.float64]
    width: NDArray[np.float64]
    n_coarse: int
    n_groups: int
    known: tuple[int, ...]

    @classmethod
    def of(
        cls, problem: Problem, features: Features, configurations: Sequence[Configuration]
    ) -> "Encoding":
        """The encoding for these configurations; features that are constant there are dropped."""
        columns = sorted(
            features.columns(configurations), key=lambda name: (name not in SINGLE, name)
        )
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
            n_coarse=sum(name in SINGLE for name in names),
            n_groups=len(groups),
            known=tuple(i for i, frame in enumerate(problem.frame) if frame.name in known),
        )

    @property
    def known_names(self) -> frozenset[str]:
        """Names of the objectives that are known."""
        return frozenset(self.problem.frame[index].name for index in self.known)

    def rows(self, configurations: Sequence[Configuration]) -> Matrix:
        """`[n, d]` features of the configurations, scaled."""
        F = self.features.matrix(configurations, self.columns)
        return np.asarray((F - self.low) / self.width)

    def costs(self, configurations: Sequence[Configuration]) -> Matrix:
        """`[n, k]` exact utilities of the `k` known objectives."""
        frames = [self.problem.frame[index] for index in self.known]
        rows = []
        for each in configurations:
            values: Mapping[str, float] = self.problem.known(each)
            rows.append([utility(frame, values[frame.name]) for frame in frames])
        return np.array(rows, dtype=np.float64).reshape(len(configurations), len(frames))


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
