"""The surrogate of one measured objective: a Gaussian process over features.

BoTorch's `SingleTaskGP` with a Matern-5/2 kernel, one lengthscale per feature under a log-normal
prior that grows with the root of the dimension (Hvarfner et al., arXiv 2402.02229), outputs
standardised, float64. Changed: the dimension counts groups of features, the prior is narrower, the
noise has a floor (an accuracy on n examples cannot be known better than its binomial error), and
hyper-parameters are fitted on a bounded number of rows.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.bo import (
    ExactMarginalLogLikelihood,
    GaussianLikelihood,
    GreaterThan,
    InputDataWarning,
    LogNormalPrior,
    MaternKernel,
    ModelFittingError,
    NanError,
    NotPSDError,
    NumericalWarning,
    NumericsWarning,
    OptimizationWarning,
    SingleTaskGP,
    Standardize,
    fit_gpytorch_mll,
)
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.front import reach, utility
from autopeft.study.records import ObjectiveFrame

_log = logging.getLogger(__name__)

FIT_ROWS = 256
"""Rows that hyper-parameters are fitted on (the first ones given); a fit costs rows cubed, and
hyper-parameters change little beyond a few hundred."""

MAX_ITERATIONS = 150

LEAST_NOISE = 1e-4
"""Smallest noise variance, of standardised outputs (BoTorch's own bound)."""

MODE = 0.5
SCALE = 0.75
"""The lengthscales' prior. BoTorch's (0.2 and 1.73) is wide: with the dozen measurements of a
small study, single features got lengthscales so short that the fit explained noise. Narrower ones
won on synthetic studies of 24 trials, with little difference between modes 0.4 and 0.7."""

SHORTEST = 0.025
"""Shortest lengthscale (BoTorch's own bound)."""

MOST_FLOOR = 0.25
"""Largest noise floor, of standardised outputs: where all trials look alike within the binomial
error, the fit may still find more noise, but must be free to find some signal."""


@contextmanager
def numerics(seed: int) -> Iterator[None]:
    """Runs a block in a random stream of its own, on one thread, without known warnings.

    One thread makes sums, and so choices, the same on every machine size; the matrices are too
    small to gain from more. The random state and the thread count are restored afterwards.

    Args:
        seed: Seeds torch within the block.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Jitter on a nearly singular matrix, and an optimiser that stops at its bound, are
        # expected here; constant outputs and inputs beyond the unit cube are handled.
        for benign in (NumericalWarning, NumericsWarning, OptimizationWarning, InputDataWarning):
            warnings.simplefilter("ignore", benign)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def noise_variance(frame: ObjectiveFrame, values: list[float], n_validation: int) -> float:
    """The binomial variance of a share of `n_validation` examples, in units of utility.

    Shares are metrics to be maximised whose best value is 1 (accuracy; F1 and correlations are
    near enough). Others have none: 0.

    Args:
        frame: The metric's frame.
        values: Values measured so far; the variance is that of their median.
        n_validation: Validation examples.
    """
    if frame.goal != "max" or frame.best != 1.0 or n_validation < 1 or not values:
        return 0.0
    median = sorted(values)[len(values) // 2]
    share = min(max(median, 1.0 / (n_validation + 2)), 1.0 - 1.0 / (n_validation + 2))
    return share * (1.0 - share) / n_validation / (frame.best - frame.worst) ** 2


def fit_objectives(
    problem: Problem,
    encoding: Encoding,
    measurements: Sequence[Observation],
    probes: Sequence[Observation] = (),
) -> list[SingleTaskGP | int]:
    """A surrogate per objective, in the frame's order: a GP, or the column of a known utility.

    Args:
        problem: Gives the frame.
        encoding: Turns measurements into rows.
        measurements: At least one, those that matter most first. Failed ones count as utility 0
            at the full budget, as the trial will never be better.
        probes: Every trial once, for costs that are measured; by default the measurements.
    """
    surrogates: list[SingleTaskGP | int] = []
    for index, frame in enumerate(problem.frame):
        if index in encoding.known:
            surrogates.append(encoding.n_inputs + encoding.known.index(index))
        elif index == 0:
            surrogates.append(_fit_quality(problem, encoding, measurements))
        else:
            surrogates.append(fit_cost(frame, encoding, probes or measurements))
    return surrogates


def _fit_quality(
    problem: Problem, encoding: Encoding, measurements: Sequence[Observation]
) -> SingleTaskGP:
    frame = problem.frame[0]
    rungs = [1.0 if each.failed else each.rung for each in measurements]
    X = torch.from_numpy(encoding.rows([each.configuration for each in measurements], rungs))
    values = [each.objectives.get(frame.name) for each in measurements]
    sound = [
        value
        for value, each in zip(values, measurements, strict=True)
        if value is not None and not each.failed
    ]
    y = [
        0.0 if each.failed else utility(frame, value)
        for value, each in zip(values, measurements, strict=True)
    ]
    return fit_surrogate(
        X,
        torch.tensor(y, dtype=torch.float64),
        n_inputs=encoding.n_inputs,
        n_groups=encoding.n_groups,
        noise=noise_variance(frame, sound, problem.n_validation),
    )


def fit_cost(
    frame: ObjectiveFrame, encoding: Encoding, probes: Sequence[Observation]
) -> SingleTaskGP:
    """A surrogate of a measured cost's reach on its frame (see `front.reach`), so on log scale.

    A probe measures at no rung, so all rows stand at the full budget, and a trial counts once,
    however many rungs it reached, whether it failed or was trained at all. Where nothing was
    measured, the cost is thought to be what it is in the middle of the frame.

    Args:
        frame: Of an objective or of a limit.
        encoding: Turns trials into rows.
        probes: At least one trial; those without a value are left out.
    """
    told = {each.number: each for each in probes if frame.name in each.objectives}
    rows = list(told.values()) or list(probes[:1])
    X = torch.from_numpy(encoding.rows([each.configuration for each in rows]))
    y = [reach(frame, each.objectives[frame.name]) if told else 0.5 for each in rows]
    return fit_surrogate(
        X,
        torch.tensor(y, dtype=torch.float64),
        n_inputs=encoding.n_inputs,
        n_groups=encoding.n_groups,
        noise=0.0,
    )


def fit_surrogate(
    X: Tensor, y: Tensor, *, n_inputs: int, n_groups: int, noise: float
) -> SingleTaskGP:
    """A GP fitted to the rows.

    Where the fit fails, the hyper-parameters stay at their priors' modes: a fit remembered from
    before would make the searcher's choices depend on when it was started.

    Args:
        X: `[n, D]` float64 inputs, n >= 1, the rows that matter most first.
        y: `[n]` float64 outputs.
        n_inputs: The GP reads the first `n_inputs` columns.
        n_groups: How many independent inputs these amount to.
        noise: Floor of the noise variance, in units of y squared.
    """
    fitted = _model(X[:FIT_ROWS], y[:FIT_ROWS], n_inputs, n_groups, noise)
    at_modes = {name: value.clone() for name, value in fitted.state_dict().items()}
    try:
        fit_gpytorch_mll(
            ExactMarginalLogLikelihood(fitted.likelihood, fitted),
            optimizer_kwargs={"options": {"maxiter": MAX_ITERATIONS}},
            max_attempts=1,
        )
    except (ModelFittingError, NotPSDError, NanError) as error:
        _log.warning("the surrogate's fit failed (%s); its priors' modes are used", error)
        fitted.load_state_dict(at_modes)
    model = fitted
    if len(X) > FIT_ROWS:
        model = _model(X, y, n_inputs, n_groups, noise)
        for part in ("mean_module", "covar_module", "likelihood"):
            getattr(model, part).load_state_dict(getattr(fitted, part).state_dict())
    model.eval()
    return model


def _model(X: Tensor, y: Tensor, n_inputs: int, n_groups: int, noise: float) -> SingleTaskGP:
    spread = float(y.var()) if len(y) > 1 else 0.0
    floor = min(max(noise / spread, LEAST_NOISE), MOST_FLOOR) if spread > 0 else LEAST_NOISE
    prior = LogNormalPrior(loc=-4.0, scale=1.0)
    return SingleTaskGP(
        X,
        y.unsqueeze(-1),
        likelihood=GaussianLikelihood(
            noise_prior=prior,
            noise_constraint=GreaterThan(
                floor, transform=None, initial_value=max(float(prior.mode), 1.5 * floor)
            ),
        ),
        covar_module=_kernel(n_inputs, n_groups),
        outcome_transform=Standardize(m=1),
    )


def _kernel(n_inputs: int, n_groups: int) -> MaternKernel:
    """Matern-5/2 with a log-normal prior on each lengthscale, its mode `MODE * sqrt(n_groups)`."""
    mode = MODE * math.sqrt(n_groups)
    prior = LogNormalPrior(loc=math.log(mode) + SCALE**2, scale=SCALE)
    return MaternKernel(
        nu=2.5,
        ard_num_dims=n_inputs,
        active_dims=tuple(range(n_inputs)),
        lengthscale_prior=prior,
        lengthscale_constraint=GreaterThan(SHORTEST, transform=None, initial_value=mode),
    )
