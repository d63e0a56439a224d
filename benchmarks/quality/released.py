"""The field's reference as released: what its code does, where that is not what its paper says.

`autopeft.searchers.reference` with three defects of AutoPEFT's released code (arXiv 2301.12132,
`adapterhub/bo/models.py`, `optimize_acqf`) put back; here to be compared with, for no other use:

- Each local search appends its result to the list of configurations behind all the starts, but
  the winner is looked up by the number of its start: so the *start* of the winning search is
  trained, a single mutation of a Pareto point, and the GP is told its measurement as that of the
  *optimised* vector.
- What was trained before is not excluded; only the optimised vectors of one batch differ. The
  same configuration may so be trained again, as a new trial.
- Parents are drawn by a generator seeded with the clock's second, so that the starts of one
  proposal nearly always share one parent; here they always do.

The rest is as in `reference` (float64, a seed that reproduces, the frame's reference point): what
differs between the two is these three alone. It needs no restart, so it keeps the vectors in
memory, and breaks the searchers' contract on repeats knowingly.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.candidates import Candidates
from autopeft.searchers.dominance import non_dominated
from autopeft.searchers.history import History, stream
from autopeft.searchers.reference.climbing import LocalSearch, vectors
from autopeft.searchers.reference.numerics import numerics
from autopeft.searchers.reference.searcher import (
    PUBLISHED,
    Recipe,
    full_trials,
    improvement,
    located,
    proposal,
    utility_rows,
)
from autopeft.space.space import Point
from autopeft.study.records import Origin


class ReleasedSearcher:
    """Trains the starts of local searches, and learns them as the optimised vectors."""

    def __init__(self, problem: Problem, recipe: Recipe | None = None) -> None:
        """Make the searcher.

        Args:
            problem: What to search.
            recipe: Its numbers; None: the published ones.
        """
        self._problem, self._recipe = problem, recipe or PUBLISHED
        self._history = History(problem)
        self._candidates = Candidates(problem)
        self._search = LocalSearch(problem, self._candidates, self._recipe.evaluations)
        self._drawn = 0
        self._rounds = 0
        self._told_as: dict[str, list[Point]] = defaultdict(list)

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; every trial under a number of its own, repeats too."""
        self._history.tell(observations)

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """`q` proposals; `pending` is not read, as the released code waits for its batches."""
        self._rounds += 1
        rng = stream(self._problem.seed, self._rounds, "released")
        wanted = min(q, self._recipe.initial - self._drawn)
        found: list[Proposal] = []
        if wanted > 0:
            drawn = self._candidates.sample(rng, wanted, frozenset())
            self._drawn += len(drawn)
            for each in drawn:
                self._told_as[each.hash].append(each.point)
            details = {"reason": "random start"}
            found = [Proposal(each.configuration, Origin.INITIAL, details) for each in drawn]
        trials = full_trials(self._history)
        if len(found) < q and len(trials) >= 2:
            found += self._optimised(q - len(found), trials, rng)
        return found

    def told_as(self, trials: Sequence[Observation]) -> list[Point]:
        """The point that each trial is told as: of its proposals in order, its own where none."""
        used: dict[str, int] = defaultdict(int)
        points = []
        for trial in trials:
            key = trial.configuration.hash
            named = self._told_as[key][used[key] : used[key] + 1]
            used[key] += 1
            own = located(self._problem, trial.configuration)
            points.append(named[0] if named else own)
        return points

    def _optimised(
        self, q: int, trials: Sequence[Observation], rng: np.random.Generator
    ) -> list[Proposal]:
        points = self.told_as(trials)
        Y = utility_rows(self._problem, trials)
        # Parents are configurations that were trained, not the vectors that they are told as.
        front = [
            located(self._problem, trial.configuration)
            for trial, flag in zip(trials, non_dominated(Y), strict=True)
            if flag
        ]
        chosen: list[Proposal] = []
        avoided: set[str] = set()
        X = vectors(self._problem, points)
        with numerics(int(rng.integers(2**31))), torch.no_grad():
            acquisition = improvement(X, Y, X[:0], self._recipe, rng)
            for _ in range(q):
                parent = front[int(rng.integers(len(front)))]
                starts = self._search.starts([parent], self._recipe.starts, rng, avoided)
                if not starts:
                    break
                climbs = self._search.climb(starts, acquisition.score, rng, avoided)
                won = max(climbs, key=lambda climb: climb.gain)
                avoided.add(won.best.hash)
                acquisition.choose(vectors(self._problem, [won.best.point])[0])
                self._told_as[won.start.hash].append(won.best.point)
                chosen.append(proposal(self._problem, won.start.configuration))
        return chosen
