"""The space-filling start: few configurations that cover the budget and the space.

Random samples of a space crowd where it has most configurations; the front needs measurements
over the whole range of trainable parameters. So a pool of samples is cut into as many strata of
equal width in log parameters as configurations are wanted, and each stratum gives the sample
that lies farthest from those chosen before (greedy maximin over the features). The space's
smallest and largest configurations are in the pool, as samples seldom reach them.

Configurations that are known to be good take turns with them, the known ones first, and are at
most half of the start: what holds for a new task is yet to be seen.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autopeft.searchers.base import Problem, Proposal
from autopeft.searchers.candidates import Candidate, Candidates
from autopeft.searchers.features import Features
from autopeft.searchers.history import History, stream
from autopeft.study.records import Origin

POOL = 256
"""Samples from which the start is chosen (or 8 for each, where that is more)."""


class InitialDesign:
    """The first `problem.initial` configurations: a function of the problem alone.

    Args:
        problem: The study's.
        candidates: Draw from its space.
        features: Say how far two configurations are apart.
        known: What is known to be good, the best bets first.
    """

    def __init__(
        self,
        problem: Problem,
        candidates: Candidates,
        features: Features,
        known: Sequence[Proposal] = (),
    ) -> None:
        self._problem = problem
        self._candidates = candidates
        self._features = features
        self._known = known[: problem.initial // 2]
        self._design: list[Proposal] | None = None

    @property
    def design(self) -> list[Proposal]:
        """The configurations, in the order in which they should be tried."""
        if self._design is None:
            details = {"reason": "space-filling start"}
            filling = [
                Proposal(each.configuration, Origin.INITIAL, details) for each in self._filling()
            ]
            turns = itertools.zip_longest(self._known, filling)
            self._design = [each for turn in turns for each in turn if each is not None]
        return self._design

    def _filling(self) -> list[Candidate]:
        """The space-filling part, none of it known."""
        n = self._problem.initial - len(self._known)
        if n <= 0:
            return []
        known = frozenset(each.configuration.hash for each in self._known)
        rng = stream(self._problem.seed, 0, "initial")
        pool = self._candidates.sample(rng, max(POOL, 8 * n), known)
        ends = self._candidates.extremes({*known, *(each.hash for each in pool)})
        return spread([*pool, *ends], n, self._features)

    def propose(self, q: int, history: History, seen: frozenset[str]) -> list[Proposal]:
        """The next `q` of the design that were not seen, noted as proposed."""
        left = [each for each in self.design if each.configuration.hash not in seen][:q]
        history.propose(each.configuration for each in left)
        return left


def spread(pool: Sequence[Candidate], n: int, features: Features) -> list[Candidate]:
    """At most `n` of the pool that cover its range of parameters and its features.

    The strata are visited in van der Corput's order, so that any first few of the result spread
    over the whole range as well; an empty stratum gives way to the nearest sample.
    """
    n = min(n, len(pool))
    if n == 0:
        return []
    configurations = [each.configuration for each in pool]
    columns = features.columns(configurations)
    X = _unit(features.matrix(configurations, columns))
    size = _unit(features.matrix(configurations, ("params",)))[:, 0]
    stratum = np.minimum((size * n).astype(np.int64), n - 1)
    distance = np.full(len(pool), np.inf)
    free = np.ones(len(pool), dtype=np.bool_)
    chosen: list[int] = []
    for wanted in _van_der_corput(n):
        offset = np.abs(stratum - wanted)
        nearest = free & (offset == offset[free].min())
        reach = distance if chosen else -np.abs(X - 0.5).sum(axis=1)
        index = int(np.where(nearest, reach, -np.inf).argmax())
        chosen.append(index)
        free[index] = False
        distance = np.minimum(distance, ((X - X[index]) ** 2).sum(axis=1))
    return [pool[index] for index in chosen]


def _unit(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns scaled to [0, 1]; constant ones become 0."""
    low, width = X.min(axis=0), np.ptp(X, axis=0)
    return np.asarray((X - low) / np.where(width > 0.0, width, 1.0))


def _van_der_corput(n: int) -> list[int]:
    """0..n-1 in the order of their base-2 radical inverses: far jumps first."""
    bits = max(n - 1, 1).bit_length()
    reverse = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    return [i for i in reverse if i < n]
