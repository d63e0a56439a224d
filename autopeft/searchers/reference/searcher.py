"""The field's reference: AutoPEFT's search (arXiv 2301.12132), repaired.

As published: 100 random configurations, then batches of 4; the vector of the space in the unit
cube; a SAAS GP by NUTS for every objective, also for the parameter count that is known in closed
form; a Gaussian copula on the outputs; noisy expected hypervolume improvement; local search from
mutated Pareto points. Repaired: what is trained is the configuration that was optimised (the
released code trains the start of the winning local search, and tells the GP the optimised
vector), trained configurations are not proposed again, each start has a Pareto parent of its own
(the released code draws parents with the clock's second as seed, so that they mostly share one),
and the seed reproduces a run. The reference point is this project's: utility 0 in every
objective, in place of 0.7 and 26 % for every task. It learns from trials of the full budget only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.candidates import Candidates
from autopeft.searchers.dominance import non_dominated
from autopeft.searchers.front import utilities
from autopeft.searchers.history import History, stream
from autopeft.searchers.reference.acquisition import NoisyImprovement
from autopeft.searchers.reference.climbing import LocalSearch, vectors
from autopeft.searchers.reference.numerics import numerics
from autopeft.searchers.reference.saas import SaasGP, draw_hyper_parameters
from autopeft.space.space import Point
from autopeft.study.records import Origin

CLAMP = 1e-4
"""Quantiles lie this far from 0 and 1, as published."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of the search; the published batches of 4 are who asks's to keep.

    Attributes:
        initial: Random configurations at the start; `search.initial` is not read.
        warmup: NUTS steps thrown away.
        samples: NUTS steps after these.
        thinning: Every so many of these are kept.
        max_depth: Of NUTS' trees.
        mc_samples: Monte-Carlo samples of the acquisition.
        starts: Local searches per proposal.
        evaluations: Candidates that these score together.
    """

    initial: int = 100
    warmup: int = 128
    samples: int = 64
    thinning: int = 4
    max_depth: int = 6
    mc_samples: int = 128
    starts: int = 10
    evaluations: int = 2000


PUBLISHED = Recipe()
"""The README's and the released code's numbers."""


class ReferenceSearcher:
    """Random configurations, then the maximisers of the acquisition."""

    def __init__(self, problem: Problem, recipe: Recipe | None = None) -> None:
        """Make the searcher.

        Args:
            problem: What to search.
            recipe: Its numbers; None: `PUBLISHED`.
        """
        self._problem, self._recipe = problem, recipe or PUBLISHED
        self._history = History(problem)
        self._candidates = Candidates(problem)
        self._search = LocalSearch(problem, self._candidates, self._recipe.evaluations)

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn."""
        self._history.tell(observations)

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """At most `q` proposals: the rest of the random start first."""
        seen = self._history.seen(pending)
        baselines = {each.configuration.hash for each in self._history.trials() if each.baseline}
        missing = self._recipe.initial - len(seen - baselines)
        rng = stream(self._problem.seed, len(seen), "reference")
        trials = full_trials(self._history)
        if missing > 0 or len(trials) < 2:
            wanted = min(q, missing) if len(trials) >= 2 else q
            reason = "random start" if missing > 0 else "fewer than two full trials"
            drawn = self._candidates.sample(rng, wanted, seen)
            found = [
                Proposal(each.configuration, Origin.INITIAL, {"reason": reason}) for each in drawn
            ]
        else:
            found = []
        self._history.propose(each.configuration for each in found)
        if len(found) < q and len(trials) >= 2:
            found += self._optimised(q - len(found), trials, pending, rng)
        return found

    def _optimised(
        self,
        q: int,
        trials: Sequence[Observation],
        pending: Sequence[Configuration],
        rng: np.random.Generator,
    ) -> list[Proposal]:
        points = [located(self._problem, each.configuration) for each in trials]
        waiting = self._history.pending(pending).values()
        at = [located(self._problem, each) for each in waiting]
        Y = utility_rows(self._problem, trials)
        parents = [point for point, flag in zip(points, non_dominated(Y), strict=True) if flag]
        chosen: list[Proposal] = []
        with numerics(int(rng.integers(2**31))), torch.no_grad():
            acquisition = improvement(
                vectors(self._problem, points), Y, vectors(self._problem, at), self._recipe, rng
            )
            while len(chosen) < q:
                seen = self._history.seen(pending)
                starts = self._search.starts(parents, self._recipe.starts, rng, seen)
                if not starts:
                    break
                climbs = self._search.climb(starts, acquisition.score, rng, seen)
                best = max(climbs, key=lambda climb: climb.gain).best
                acquisition.choose(vectors(self._problem, [best.point])[0])
                chosen.append(proposal(self._problem, best.configuration))
                self._history.propose([best.configuration])
        return chosen


def proposal(problem: Problem, configuration: Configuration) -> Proposal:
    """A proposal of the acquisition; its gain, of ranks and not of utilities, is not told."""
    return Proposal(
        configuration,
        Origin.SEARCHER,
        {
            "reason": "expected hypervolume gain",
            "known": dict(problem.known(configuration)),
            "source": "acquisition",
        },
    )


def full_trials(history: History) -> list[Observation]:
    """What the reference learns from: full-budget and failed trials, without baselines."""
    return [
        each
        for each in history.trials()
        if (each.rung >= 1.0 or each.failed) and not each.baseline
    ]


def utility_rows(problem: Problem, trials: Sequence[Observation]) -> NDArray[np.float64]:
    """The trials' utilities `[n, m]`; a failed trial has no quality."""
    rows = np.array([utilities(problem.frame, each.objectives) for each in trials])
    rows = rows.reshape(len(trials), len(problem.frame))
    rows[[each.failed for each in trials], 0] = 0.0
    return rows


def located(problem: Problem, configuration: Configuration) -> Point:
    """The point of a configuration of the space.

    Raises:
        ValueError: It is of another space.
    """
    point = problem.space.nearest(configuration.to_dict())
    if point is None:
        raise ValueError(f"{configuration.hash} has no method of the space")
    return point


def improvement(
    X: Tensor,
    Y: NDArray[np.float64],
    pending: Tensor,
    recipe: Recipe,
    rng: np.random.Generator,
) -> NoisyImprovement:
    """The acquisition: surrogates of the copula-transformed utilities, fitted.

    Args:
        X: `[n, d]` told vectors.
        Y: `[n, m]` their utilities.
        pending: `[p, d]` vectors in training.
        recipe: The numbers.
        rng: Decides the fits and samples.
    """
    models = [_fitted(X, copula(column, column), recipe, rng) for column in Y.T]
    reference = [float(copula(column, np.zeros(1))[0]) for column in Y.T]
    seed = int(rng.integers(2**31))
    return NoisyImprovement(models, reference, X, pending, samples=recipe.mc_samples, seed=seed)


def _fitted(X: Tensor, y: NDArray[np.float64], recipe: Recipe, rng: np.random.Generator) -> SaasGP:
    target = torch.from_numpy(y)
    hyper = draw_hyper_parameters(
        X,
        target,
        rng=np.random.default_rng(int(rng.integers(2**31))),
        warmup=recipe.warmup,
        samples=recipe.samples,
        thinning=recipe.thinning,
        max_depth=recipe.max_depth,
    )
    return SaasGP(X, target, hyper, mixture=True)


def copula(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal scores: each of `at` through the empirical distribution of `values`, then probit."""
    below = np.searchsorted(np.sort(values), at, side="right") / len(values)
    return np.asarray(ndtri(np.clip(below, CLAMP, 1.0 - CLAMP)), dtype=np.float64)
