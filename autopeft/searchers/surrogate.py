"""The surrogates: what the searcher believes of the objectives that it cannot compute.

Each is a Gaussian process (`autopeft.searchers.gaussian_process`) in utilities. Quality is learnt
from every rung of every trial; what a value may be off is at least what the validation set's size
says (an accuracy on n examples is not known better than its binomial error), and the rest is
fitted. Measured costs do not depend on the rung, and lie on log scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.front import reach, utility
from autopeft.searchers.fully_bayesian import draw
from autopeft.searchers.gaussian_process import Data, Kernel, Layout, Prior, Worlds, fit
from autopeft.study.records import ObjectiveFrame

Array = NDArray[np.float64]

FIT_ROWS = 400
"""Rows that hyper-parameters are fitted on (the first ones given); a fit costs rows cubed, and
hyper-parameters change little beyond a few hundred."""

ITERATIONS = 25
"""Steps of a fit. On recorded tables, 15 predicted as well as 40."""

LEAST_SPREAD = 1e-3
"""Standard deviation in utility below which values count as all equal."""


@dataclass(frozen=True)
class Surrogate:
    """One objective's process.

    Attributes:
        data: What it is conditioned on, standardised.
        kernels: At the mode of the hyper-parameters, or at several draws of them.
        centre: Utility of a standardised 0.
        scale: Utility of a standardised 1.
    """

    data: Data
    kernels: tuple[Kernel, ...]
    centre: float
    scale: float

    @property
    def noise(self) -> float:
        """Variance of a measurement at the full budget, in utility squared."""
        return float(np.mean([each.noise[-1] for each in self.kernels])) * self.scale**2

    def worlds(self, draws: Array) -> "UtilityWorlds":
        """Its posterior as worlds, in units of utility, shared out among the kernels.

        Args:
            draws: `[S, m]`, see `Worlds`.
        """
        n = len(self.kernels)
        worlds = [Worlds(self.data, each, draws[i::n]) for i, each in enumerate(self.kernels)]
        return UtilityWorlds(worlds, self.centre, self.scale)

    @cached_property
    def _alike(self) -> "UtilityWorlds":
        """One world of each kernel, in which nothing will be imagined."""
        return self.worlds(np.zeros((len(self.kernels), 0)))

    def predict(self, X: Array) -> tuple[Array, Array]:
        """Means and standard deviations of true values at the full budget, `[n]` each.

        Of several kernels, those of their mixture.
        """
        means, sds = self._alike.predict(X)
        mean = means.mean(1)
        variance = (sds**2 + means**2).mean(1) - mean**2
        return mean, np.sqrt(np.maximum(variance, 1e-18))


class UtilityWorlds:
    """`Worlds` in units of utility, of one kernel after the other."""

    def __init__(self, worlds: Sequence[Worlds], centre: float, scale: float) -> None:
        self._worlds, self._centre, self._scale = tuple(worlds), centre, scale

    def predict(self, X: Array) -> tuple[Array, Array]:
        """Means and standard deviations `[n, S]` at the full budget, without noise."""
        means, sds = zip(*(each.predict(X) for each in self._worlds), strict=True)
        wide = [np.broadcast_to(sd, mean.shape) for mean, sd in zip(means, sds, strict=True)]
        return (
            self._centre + self._scale * np.concatenate(means, axis=1),
            self._scale * np.concatenate(wide, axis=1),
        )

    def imagine(self, X: Array) -> Array:
        """Draw the values of points `[m, d]` in every world, `[m, S]`; they are known then."""
        drawn = np.concatenate([each.imagine(X) for each in self._worlds], axis=1)
        return np.asarray(self._centre + self._scale * drawn)


def fit_quality(
    problem: Problem,
    encoding: Encoding,
    measurements: Sequence[Observation],
    prior: Prior,
    *,
    rng: np.random.Generator | None = None,
) -> Surrogate:
    """The surrogate of the quality, from all rungs.

    Args:
        problem: Gives the frame.
        encoding: Turns configurations into rows.
        measurements: At least one, those that matter most first. Failed ones count as utility 0
            at the full budget, as the trial will never be better.
        prior: Over the hyper-parameters.
        rng: Decides draws of the hyper-parameters; None for their mode.
    """
    frame = problem.frame[0]
    shares = np.array([1.0 if each.failed else min(each.rung, 1.0) for each in measurements])
    rungs = np.unique(np.append(shares, 1.0))
    values = [
        frame.worst if each.failed else each.objectives.get(frame.name) for each in measurements
    ]
    y = np.array([utility(frame, value) for value in values])
    floor = np.array([noise_variance(frame, value, problem.n_validation) for value in values])
    at = np.searchsorted(rungs, shares)
    return _fitted(encoding, measurements, at, y, floor, len(rungs), prior, rng)


def fit_cost(
    frame: ObjectiveFrame, encoding: Encoding, probes: Sequence[Observation], prior: Prior
) -> Surrogate | None:
    """The surrogate of a measured cost, or None where nothing was measured yet.

    It is of the cost's reach on its frame, which is its utility but for not being clipped: bounds
    may lie outside the frame, and a clipped value would say less than was measured.

    Args:
        frame: Of an objective, or of a limit on a cost that is none.
        encoding: Turns configurations into rows.
        probes: Trials, those that were never trained among them; a cost is measured at no rung,
            so each counts once.
        prior: Over the hyper-parameters.
    """
    by_trial = {p.number: p for p in probes if _measured(p.objectives.get(frame.name))}
    trials = list(by_trial.values())
    if not trials:
        return None
    y = np.array([reach(frame, each.objectives[frame.name]) for each in trials])
    rungs = np.zeros(len(trials), dtype=np.int64)
    return _fitted(encoding, trials, rungs, y, np.zeros(len(trials)), 1, prior)


def _measured(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def noise_variance(frame: ObjectiveFrame, value: float | None, n_validation: int) -> float:
    """The binomial variance of a share of `n_validation` examples, in units of utility squared.

    0 for objectives that are not shares of correct answers, whose noise is left to the fit.

    Args:
        frame: The objective.
        value: What was measured.
        n_validation: Examples that it was measured on.
    """
    if (
        frame.goal != "max"
        or frame.scale != "linear"
        or not 0.0 <= frame.worst < frame.best <= 1.0
    ):
        return 0.0
    if value is None or math.isnan(value):
        return 0.0
    least = 1.0 / (n_validation + 2)
    share = min(max(value, least), 1.0 - least)
    return share * (1.0 - share) / n_validation / (frame.best - frame.worst) ** 2


def _fitted(
    encoding: Encoding,
    trials: Sequence[Observation],
    rungs: NDArray[np.int64],
    y: Array,
    floor: Array,
    n_rungs: int,
    prior: Prior,
    rng: np.random.Generator | None = None,
) -> Surrogate:
    """At the mode of the hyper-parameters; at draws of them where `rng` is given."""
    X = encoding.rows([each.configuration for each in trials])
    centre, scale = _standard(y, rungs == n_rungs - 1)
    data = Data(X, rungs, (y - centre) / scale, floor / scale**2)
    layout = Layout(
        n_coarse=encoding.n_coarse,
        n_inputs=X.shape[1],
        n_rungs=n_rungs,
        scale_coarse=math.sqrt(max(encoding.n_coarse, 1)),
        scale_fine=math.sqrt(max(encoding.n_groups, 1)),
    )
    if rng is None:
        kept = slice(FIT_ROWS)
        first = Data(data.X[kept], data.r[kept], data.y[kept], data.floor[kept])
        thetas = [fit(first, layout, prior, iterations=ITERATIONS)]
    else:
        thetas = draw(data, layout, prior, rng)
    return Surrogate(data, tuple(Kernel(layout, each) for each in thetas), centre, scale)


def _standard(y: Array, full: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and spread of the values, of full-budget ones where there are some."""
    chosen = y[full] if full.sum() >= 3 else y
    spread = float(chosen.std())
    return float(chosen.mean()), spread if spread > LEAST_SPREAD else 1.0
