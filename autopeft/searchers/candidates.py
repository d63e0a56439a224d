"""Candidates: points of the space as configurations that may be proposed.

Here the three conditions on a proposal are kept in one place: it is feasible, it was not seen
before, and it is distinct from the others of its batch. Identity is the configuration's hash, as
many points may stand for one configuration.
"""

import heapq
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from autopeft.configuration import Configuration
from autopeft.searchers.base import Problem
from autopeft.space.space import Point

PATIENCE = 500
"""Fruitless samples in a row after which the space is walked instead. A feasible share of 1 % is
then missed once in 150 times, and the walk finds it all the same."""

WALK = 4000
"""Configurations that a walk builds at most: it closes small spaces, and bounds the time (about
half a second) where next to nothing is feasible."""


@dataclass(frozen=True)
class Candidate:
    """A configuration that may be proposed, with the point that stands for it."""

    point: Point
    configuration: Configuration
    hash: str


class Candidates:
    """Draws candidates from a problem's space."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def of(self, point: Point) -> Candidate:
        """The candidate that a point stands for, feasible or not."""
        configuration = self._problem.build(point)
        return Candidate(point, configuration, configuration.hash)

    def sample(self, rng: np.random.Generator, n: int, seen: AbstractSet[str]) -> list[Candidate]:
        """Up to `n` distinct, feasible, unseen candidates from the space's own distribution.

        Where samples bring nothing new any more, the space is walked from neighbour to neighbour,
        so that a small space is used up to its last configuration and a tight cap is met.
        """
        found: dict[str, Candidate] = {}
        drawn: list[Candidate] = []
        fruitless = 0
        while len(found) < n and fruitless < PATIENCE:
            candidate = self.of(self._problem.space.sample(rng))
            drawn.append(candidate)
            if self._fresh(candidate, seen, found):
                found[candidate.hash] = candidate
                fruitless = 0
            else:
                fruitless += 1
        if len(found) < n:
            self._walk(rng, n, seen, found, [*self._extremes(), *drawn[-PATIENCE:]])
        return list(found.values())

    def neighbours(
        self, point: Point, rng: np.random.Generator, n: int, seen: AbstractSet[str]
    ) -> list[Candidate]:
        """Up to `n` distinct, feasible, unseen candidates one change away from the point."""
        found: dict[str, Candidate] = {}
        for candidate in map(self.of, self._problem.space.neighbours(point, rng, n)):
            if self._fresh(candidate, seen, found):
                found[candidate.hash] = candidate
        return list(found.values())

    def extremes(self, seen: AbstractSet[str]) -> list[Candidate]:
        """The space's smallest and largest configurations, where feasible, unseen, distinct."""
        found: dict[str, Candidate] = {}
        for candidate in self._extremes():
            if self._fresh(candidate, seen, found):
                found[candidate.hash] = candidate
        return list(found.values())

    def _extremes(self) -> list[Candidate]:
        space = self._problem.space
        return [self.of(point) for point in (*space.smallest(), *space.largest_by_method())]

    def _fresh(self, candidate: Candidate, seen: AbstractSet[str], found: Iterable[str]) -> bool:
        return (
            candidate.hash not in seen
            and candidate.hash not in found
            and self._problem.feasible(candidate.configuration)
        )

    def _walk(
        self,
        rng: np.random.Generator,
        n: int,
        seen: AbstractSet[str],
        found: dict[str, Candidate],
        starts: list[Candidate],
    ) -> None:
        """Add to `found` by a best-first walk, the smallest configurations first."""
        visited: dict[str, Candidate] = {}
        for start in starts:
            visited[start.hash] = start
            if len(found) < n and self._fresh(start, seen, found):
                found[start.hash] = start
        queue = [(self._params(start), hash_) for hash_, start in visited.items()]
        heapq.heapify(queue)
        while queue and len(found) < n and len(visited) < WALK:
            point = visited[heapq.heappop(queue)[1]].point
            for candidate in map(self.of, self._problem.space.neighbours(point, rng, 64)):
                if candidate.hash in visited:
                    continue
                visited[candidate.hash] = candidate
                heapq.heappush(queue, (self._params(candidate), candidate.hash))
                if len(found) < n and self._fresh(candidate, seen, found):
                    found[candidate.hash] = candidate

    def _params(self, candidate: Candidate) -> int:
        return sum(self._problem.site_params(candidate.configuration).values())
