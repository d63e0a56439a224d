"""What a searcher has been told and has proposed: all the state that a searcher may have.

`ask` has to be a function of the problem, the tells and the proposals so far, also across a
restart. So nothing here depends on when something was said: observations are read by trial
number, pending configurations by hash, and every random stream starts anew from the study's seed
and the number of distinct configurations seen.
"""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.dominance import non_dominated
from autopeft.searchers.front import utilities


def stream(seed: int, count: int, purpose: str) -> np.random.Generator:
    """The random stream for one purpose after `count` configurations were seen."""
    return np.random.default_rng([abs(seed), count, zlib.crc32(purpose.encode())])


class History:
    """The tells and proposals of one searcher.

    A configuration that was proposed counts as pending until it is told, whether or not the
    caller names it; after a restart the caller names what is pending, which gives the same state.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rungs: dict[int, dict[float, Observation]] = {}
        self._told: set[str] = set()
        self._proposed: dict[str, Configuration] = {}

    def tell(self, observations: Iterable[Observation]) -> None:
        """Take observations in; the same trial and rung told again replaces the earlier one."""
        for observation in observations:
            self._rungs.setdefault(observation.number, {})[observation.rung] = observation
            self._told.add(observation.configuration.hash)

    def propose(self, configurations: Iterable[Configuration]) -> None:
        """Note what `ask` gives out."""
        self._proposed.update((each.hash, each) for each in configurations)

    def pending(self, named: Sequence[Configuration]) -> dict[str, Configuration]:
        """By hash and in its order: what was proposed or is `named`, and was not told."""
        every = self._proposed | {each.hash: each for each in named}
        return {hash_: every[hash_] for hash_ in sorted(every) if hash_ not in self._told}

    def seen(self, named: Sequence[Configuration]) -> frozenset[str]:
        """Hashes of all that was told, proposed or is `named` as pending."""
        return frozenset(self._told) | frozenset(self.pending(named))

    def measurements(self) -> list[Observation]:
        """Every rung of every trial that was trained, by trial and rung."""
        return [
            rungs[rung]
            for _, rungs in sorted(self._rungs.items())
            for rung in sorted(rungs)
            if not rungs[rung].infeasible
        ]

    def probes(self) -> list[Observation]:
        """Every trial once, by number, those that were not trained among them.

        What models of measured costs learn from: a cost is measured once, and at no rung.
        """
        return [rungs[max(rungs)] for _, rungs in sorted(self._rungs.items())]

    def trials(self) -> list[Observation]:
        """Each trial that was trained, at its highest rung, by number."""
        return [each for each in self.probes() if not each.infeasible]

    def front(self) -> list[Observation]:
        """The non-dominated full-budget trials; of all rungs while none is full. None failed.

        Those that keep every limit, where any does.
        """
        sound = [trial for trial in self.trials() if not trial.failed]
        trials = [trial for trial in sound if trial.rung >= 1.0] or sound
        trials = [trial for trial in trials if self.counts(trial)] or trials
        points = np.array([utilities(self._problem.frame, t.objectives) for t in trials])
        flags = non_dominated(points.reshape(len(trials), len(self._problem.frame)))
        return [trial for trial, flag in zip(trials, flags, strict=True) if flag]

    def counts(self, trial: Observation) -> bool:
        """Whether a trial may be on the front: it keeps caps and limits; a baseline may not."""
        within = not trial.baseline or self._problem.feasible(trial.configuration)
        return within and self.keeps_limits(trial)

    def keeps_limits(self, trial: Observation) -> bool:
        """Whether a trial breaks no limit; what was not measured breaks none."""
        values = ((limit, trial.objectives.get(limit.metric)) for limit in self._problem.limits)
        return all(value is None or limit.keeps(value) for limit, value in values)
