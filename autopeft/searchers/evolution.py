"""Evolution: one mutation of a random Pareto parent, the evolutionary baseline of AutoPEFT.

After AutoPEFT (arXiv 2301.12132), whose released code in fact proposes mutations of Pareto points.
Here the start is space-filling, and no configuration is proposed twice.
"""

from collections.abc import Sequence

import numpy as np

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.candidates import Candidate, Candidates
from autopeft.searchers.features import Features
from autopeft.searchers.history import History, stream
from autopeft.searchers.initial import InitialDesign
from autopeft.study.records import Origin

MUTATIONS = 16
"""Mutations tried of one parent before another parent is drawn."""

PARENTS = 8
"""Parents drawn for one proposal before a random sample takes its place."""


class EvolutionSearcher:
    """Proposes one mutation of a random member of the current front."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History(problem)
        self._candidates = Candidates(problem)
        self._initial = InitialDesign(problem, self._candidates, Features(problem))

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn which trials are on the front."""
        self._history.tell(observations)

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """At most `q` proposals: the rest of the start first, then mutations."""
        seen = self._history.seen(pending)
        proposals = self._initial.propose(q, self._history, seen)
        rng = stream(self._problem.seed, len(seen), "evolution")
        parents = self._history.front()
        while len(proposals) < q:
            proposal = self._next(rng, parents, self._history.seen(pending))
            if proposal is None:
                break
            self._history.propose([proposal.configuration])
            proposals.append(proposal)
        return proposals

    def _next(
        self, rng: np.random.Generator, parents: Sequence[Observation], seen: frozenset[str]
    ) -> Proposal | None:
        for _ in range(PARENTS if parents else 0):
            parent = parents[int(rng.integers(len(parents)))]
            for child in self._mutations(parent, rng, seen):
                details = {"reason": "mutation", "parent": parent.number}
                return Proposal(child.configuration, Origin.SEARCHER, details)
        for child in self._candidates.sample(rng, 1, seen):
            reason = "no unseen mutation of the front" if parents else "nothing measured yet"
            return Proposal(child.configuration, Origin.SEARCHER, {"reason": reason})
        return None

    def _mutations(
        self, parent: Observation, rng: np.random.Generator, seen: frozenset[str]
    ) -> list[Candidate]:
        """None of a baseline that has no point near it."""
        point = self._problem.space.nearest(parent.configuration.to_dict())
        return self._candidates.neighbours(point, rng, MUTATIONS, seen) if point else []
