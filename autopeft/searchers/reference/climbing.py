"""The reference's maximisation of its acquisition: local search from mutated Pareto points.

As in AutoPEFT's released code: from each start, again and again a random walk of as many steps as
the space has dimensions is scored, and its best place is gone to where it is better.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autopeft.searchers.base import Problem
from autopeft.searchers.candidates import Candidate, Candidates
from autopeft.space.space import Point

TRIES = 100
"""Mutations tried for all starts together before samples of the space take their place."""


@dataclass
class Climb:
    """One local search.

    Attributes:
        start: Where it began.
        best: The best candidate that it found.
        gain: Its score.
    """

    start: Candidate
    best: Candidate
    gain: float


def vectors(problem: Problem, points: Sequence[Point]) -> Tensor:
    """The points in the unit cube, `[n, d]` float64."""
    width = len(problem.space.dimensions)
    rows = np.array([problem.space.encode(point) for point in points], dtype=np.float64)
    return torch.from_numpy(rows.reshape(len(points), width))


class LocalSearch:
    """Makes starts, and climbs from them."""

    def __init__(self, problem: Problem, candidates: Candidates, evaluations: int) -> None:
        """Prepare.

        Args:
            problem: Gives the space.
            candidates: What may be proposed.
            evaluations: Candidates scored in all, shared by the starts.
        """
        self._problem, self._candidates = problem, candidates
        self._evaluations = evaluations

    def starts(
        self,
        parents: Sequence[Point],
        n: int,
        rng: np.random.Generator,
        seen: AbstractSet[str],
    ) -> list[Candidate]:
        """Up to `n`: each one mutation of a random parent, or else samples of the space."""
        found: dict[str, Candidate] = {}
        for _ in range(TRIES if parents else 0):
            parent = parents[int(rng.integers(len(parents)))]
            near = self._candidates.neighbours(parent, rng, 1, seen | found.keys())
            found.update((each.hash, each) for each in near)
            if len(found) == n:
                return list(found.values())
        rest = self._candidates.sample(rng, n - len(found), seen | found.keys())
        return [*found.values(), *rest]

    def climb(
        self,
        starts: Sequence[Candidate],
        score: Callable[[Tensor], Tensor],
        rng: np.random.Generator,
        seen: AbstractSet[str],
    ) -> list[Climb]:
        """A local search from each of at least one start; all walk a round, then all are scored.

        Args:
            starts: Where to begin.
            score: The acquisition: `[n, d]` -> `[n]`.
            rng: Decides the walks.
            seen: What may be walked over but not chosen.
        """
        gains = score(vectors(self._problem, [each.point for each in starts])).tolist()
        climbs = [Climb(each, each, gain) for each, gain in zip(starts, gains, strict=True)]
        length = len(self._problem.space.dimensions)
        for _ in range(-(-self._evaluations // (len(starts) * length))):
            walks = [self._walk(climb.best.point, length, rng, seen) for climb in climbs]
            places = [place for walk in walks for place in walk]
            if not places:
                break
            found = iter(score(vectors(self._problem, [each.point for each in places])).tolist())
            for climb, walk in zip(climbs, walks, strict=True):
                for place in walk:
                    if (gain := next(found)) > climb.gain:
                        climb.best, climb.gain = place, gain
        return climbs

    def _walk(
        self, point: Point, length: int, rng: np.random.Generator, seen: AbstractSet[str]
    ) -> list[Candidate]:
        """Where a random walk comes by, without what may not be chosen."""
        found: dict[str, Candidate] = {}
        for _ in range(length):
            near = self._problem.space.neighbours(point, rng, 1)
            if not near:
                break
            point = near[0]
            candidate = self._candidates.of(point)
            if candidate.hash not in seen and self._problem.feasible(candidate.configuration):
                found[candidate.hash] = candidate
        return list(found.values())
