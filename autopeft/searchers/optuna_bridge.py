"""Optuna's samplers as searchers: what people know, to use and to compare with.

Each ask makes a study in memory anew from what was told and is pending, and a sampler whose seed
follows from the study's seed and the number of configurations seen: nothing is kept that a restart
would lose. What a sampler is told:

- **Values** are the objectives' utilities, maximised: what hypervolume is measured in. Optuna
  knows no known objectives, so they are values like quality. As raw counts of parameters, all but
  the largest configurations would lie at one end of the scale, which misleads the GP and NSGA-II.
- **Stopped trials** are complete, with their values at the rung. Optuna's studies of several
  objectives know no pruning; left out, the places of these trials would be proposed again.
- **Failed trials** are complete, with the quality of the constant predictor.
- **Pending** configurations are running trials, which TPE and the GP stay away from.
- A configuration outside the space (a baseline) has no parameters, and is not told.

The samplers start as they do by themselves, at random, and have Optuna's own settings: that is
what their users get, and what a comparison has to be made with. The one exception is `_tpe`'s.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.candidates import Candidate, Candidates
from autopeft.searchers.front import utilities
from autopeft.searchers.history import History, stream
from autopeft.searchers.optuna_trials import Parameters, suggested
from autopeft.study.records import Origin

NEIGHBOURS = 32
"""Neighbours of a suggestion that may not be proposed, among which one that may is taken."""


@dataclass(frozen=True)
class Recipe:
    """How one of Optuna's samplers is run.

    Attributes:
        sampler: What Optuna calls it.
        make: The sampler of a seed.
        start: Told trials before which it draws at random.
        attempts: Suggestions for one proposal, before a neighbour of the last takes its place.
        generation: Trials of a generation; 0 where it has none.
    """

    sampler: str
    make: Callable[[int], BaseSampler]
    start: int
    attempts: int
    generation: int = 0


def _tpe(seed: int) -> BaseSampler:
    """TPE over groups of parameters that occur together: Optuna's form for conditional spaces.

    With several objectives, its default models each parameter alone, and multivariate TPE without
    groups only those that every trial has.
    """
    return TPESampler(seed=seed, multivariate=True, group=True)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed)


def _nsga3(seed: int) -> BaseSampler:
    return NSGAIIISampler(seed=seed)


def _gpsampler(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False)


RECIPES: Mapping[str, Recipe] = {
    "gpsampler": Recipe("GPSampler", _gpsampler, start=10, attempts=4),
    "nsga2": Recipe("NSGAIISampler", _nsga2, start=50, attempts=50, generation=50),
    "nsga3": Recipe("NSGAIIISampler", _nsga3, start=50, attempts=50, generation=50),
    "tpe": Recipe("TPESampler", _tpe, start=10, attempts=50),
}
"""By the searcher's name. A suggestion of the GP takes seconds, one of the others milliseconds."""


class OptunaSearcher:
    """Proposes what one of Optuna's samplers suggests, where it is feasible and new.

    A suggestion that is not is answered by another; after some attempts an unseen neighbour of the
    last is proposed, or a sample of the space where there is none.

    Args:
        problem: The problem.
        name: A name of `RECIPES`.
    """

    def __init__(self, problem: Problem, name: str) -> None:
        self._problem, self._name, self._recipe = problem, name, RECIPES[name]
        self._history = History(problem)
        self._candidates = Candidates(problem)
        self._dimensions = {each.name: each for each in problem.space.dimensions}
        self._known: dict[str, Parameters | None] = {}

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; the highest rung of a trial counts."""
        self._history.tell(observations)

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """At most `q` proposals, each made with those before it pending."""
        seen = self._history.seen(pending)
        rng = stream(self._problem.seed, len(seen), self._name)
        proposals: list[Proposal] = []
        with _quiet():
            study = self._study(self._recipe.make(_seed(rng)), pending) if q > 0 else None
            while study and len(proposals) < q:
                proposal = self._next(study, rng, self._history.seen(pending))
                if proposal is None:
                    break
                self._history.propose([proposal.configuration])
                proposals.append(proposal)
        return proposals

    # -- suggestions --------------------------------------------------------------------------

    def _next(
        self, study: optuna.Study, rng: np.random.Generator, seen: frozenset[str]
    ) -> Proposal | None:
        last: Candidate | None = None
        for _ in range(self._recipe.attempts):
            trial = study.ask()
            point, _ = self._problem.space.dialogue(partial(suggested, trial))
            candidate = self._candidates.of(point)
            if self._may_be_proposed(candidate, seen):
                return self._proposal(study, candidate.configuration)
            study.tell(trial, state=TrialState.FAIL)
            last = candidate if candidate.configuration.groups else last
        return self._instead(study, last, rng, seen)

    def _may_be_proposed(self, candidate: Candidate, seen: frozenset[str]) -> bool:
        """Whether it is a configuration at all, new, and within the caps."""
        configuration = candidate.configuration
        known = candidate.hash in seen or not configuration.groups
        return not known and self._problem.feasible(configuration)

    def _proposal(self, study: optuna.Study, configuration: Configuration) -> Proposal:
        told = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
        if told < self._recipe.start:
            details = {"reason": f"random start of Optuna's {self._recipe.sampler}"}
            return Proposal(configuration, Origin.INITIAL, details)
        details = {"reason": f"suggested by Optuna's {self._recipe.sampler}"}
        return Proposal(configuration, Origin.SEARCHER, details)

    def _instead(
        self,
        study: optuna.Study,
        last: Candidate | None,
        rng: np.random.Generator,
        seen: frozenset[str],
    ) -> Proposal | None:
        """A neighbour of the last suggestion, else a sample; None where the space is used up."""
        near = self._candidates.neighbours(last.point, rng, NEIGHBOURS, seen) if last else []
        what = "a neighbour" if near else "a sample of the space instead"
        reason = f"{what} of what Optuna's {self._recipe.sampler} suggested"
        for candidate in near[:1] or self._candidates.sample(rng, 1, seen):
            if parameters := self._parameters(candidate.configuration):
                study.add_trial(parameters.running())
            return Proposal(candidate.configuration, Origin.SEARCHER, {"reason": reason})
        return None

    # -- the study ----------------------------------------------------------------------------

    def _study(self, sampler: BaseSampler, pending: Sequence[Configuration]) -> optuna.Study:
        """A study in memory that holds all that was told and is pending."""
        directions = [StudyDirection.MAXIMIZE] * len(self._problem.frame)
        study = optuna.create_study(sampler=sampler, directions=directions)
        told = [(trial, self._parameters(trial.configuration)) for trial in self._history.trials()]
        inside = [(trial, parameters) for trial, parameters in told if parameters]
        for index, (trial, parameters) in enumerate(inside):
            study.add_trial(parameters.told(self._utilities(trial), self._marks(index)))
        self._choose_parents(study, len(inside))
        for configuration in self._history.pending(pending).values():
            if waiting := self._parameters(configuration):
                study.add_trial(waiting.running())
        return study

    def _parameters(self, configuration: Configuration) -> Parameters | None:
        """A configuration as a trial's parameters; None where it does not lie in the space."""
        if configuration.hash not in self._known:
            space = self._problem.space
            point = space.nearest(configuration.to_dict())
            inside = point is not None and self._problem.build(point) == configuration
            self._known[configuration.hash] = (
                Parameters.of(space.answers(point), self._dimensions)
                if point is not None and inside
                else None
            )
        return self._known[configuration.hash]

    def _utilities(self, trial: Observation) -> tuple[float, ...]:
        known = self._problem.known(trial.configuration)
        return utilities(self._problem.frame, {**known, **trial.objectives})

    def _marks(self, index: int) -> dict[str, int]:
        """What a genetic sampler notes of a trial: generations fill up in the trials' order."""
        size = self._recipe.generation
        return {f"{self._recipe.sampler}:generation": index // size} if size else {}

    def _choose_parents(self, study: optuna.Study, n_told: int) -> None:
        """Choose each generation's parents, the same at every ask: NSGA-III draws lots for it."""
        sampler = self._recipe.make(_seed(stream(self._problem.seed, 0, f"{self._name} parents")))
        if isinstance(sampler, BaseGASampler):
            for generation in range(1, n_told // self._recipe.generation + 1):
                sampler.get_parent_population(study, generation)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back Optuna's log lines and its warnings that something is experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
