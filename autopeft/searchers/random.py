"""Random search: distinct feasible samples of the space; what every searcher has to beat."""

from collections.abc import Sequence

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.candidates import Candidates
from autopeft.searchers.history import History, stream
from autopeft.study.records import Origin


class RandomSearcher:
    """Samples the space and learns nothing; has no initial phase of its own."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History(problem)
        self._candidates = Candidates(problem)

    def tell(self, observations: Sequence[Observation]) -> None:
        """Remember what was tried."""
        self._history.tell(observations)

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """At most `q` samples that were not seen before."""
        seen = self._history.seen(pending)
        rng = stream(self._problem.seed, len(seen), "random")
        drawn = self._candidates.sample(rng, q, seen)
        self._history.propose(each.configuration for each in drawn)
        return [Proposal(each.configuration, Origin.SEARCHER) for each in drawn]
