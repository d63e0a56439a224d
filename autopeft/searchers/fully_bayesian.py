"""The fully Bayesian surrogate: draws of the hyper-parameters in place of their mode.

SAAS (Eriksson and Jankowiak, arXiv 2103.00349): the inverse squared lengthscales of each kernel
are `tau * inverse_k` with half-Cauchy priors on both, so that few inputs are believed to matter
until the data say otherwise. Weights, rungs and noise keep the priors of a fit by mode. Draws come
from the No-U-Turn sampler, over the likelihood and its closed-form gradient.

An ask then takes tens of seconds in place of one, so it is an option (`search.surrogate`).

Notation: the sampler's vector is `phi = (log inverse_k of both kernels, the rest of theta,
log tau of both kernels)`, `theta` as `gaussian_process.Layout` has it.
"""

import math

import numpy as np

from autopeft.searchers.gaussian_process import (
    Array,
    Data,
    Layout,
    Prior,
    negative_log_likelihood,
)
from autopeft.searchers.nuts import Nuts

WARMUP, SAMPLES, THINNING, MAX_DEPTH = 48, 32, 4, 5
"""8 draws are kept. AutoPEFT takes 128 and 64, for a process without rungs; here the start is the
mode with its own Hessian as mass, which is what the longer warm-up is for."""

FIT_ROWS = 200
"""Rows that the hyper-parameters are drawn for (the first ones given)."""

TAU_SCALE = 0.1
"""Of the half-Cauchy on tau (the paper's)."""


class Density:
    """The posterior of `phi`, for the sampler.

    Args:
        data: What was measured.
        layout: Of the process's hyper-parameters.
        prior: Over what SAAS leaves as it is.
    """

    def __init__(self, data: Data, layout: Layout, prior: Prior) -> None:
        self._data, self._layout = data, layout
        self._n = (layout.n_coarse, layout.n_inputs)
        means, spreads = layout.prior(prior)
        self._means, self._spreads = means[sum(self._n) :], spreads[sum(self._n) :]

    @property
    def dimensions(self) -> int:
        """Length of `phi`."""
        return sum(self._n) + len(self._means) + 2

    def theta(self, phi: Array) -> Array:
        """The process's hyper-parameters: log lengthscale = -(log tau + log inverse) / 2."""
        coarse, fine, rest, tau = self._split(phi)
        lengthscales = [-(tau[0] + coarse) / 2.0, -(tau[1] + fine) / 2.0]
        return np.concatenate([*lengthscales, rest])

    def __call__(self, phi: Array) -> tuple[float, Array]:
        """The logarithm of the density, up to a constant, and its gradient."""
        coarse, fine, rest, tau = self._split(phi)
        value, slope = negative_log_likelihood(self.theta(phi), self._data, self._layout)
        if not math.isfinite(value):
            return -math.inf, np.zeros_like(phi)
        by_coarse, by_fine, by_rest = np.split(-slope, np.cumsum(self._n))
        z = (rest - self._means) / self._spreads
        priors = [_half_cauchy(coarse, 1.0), _half_cauchy(fine, 1.0), _half_cauchy(tau, TAU_SCALE)]
        gradient = np.concatenate(
            [
                priors[0][1] - by_coarse / 2.0,
                priors[1][1] - by_fine / 2.0,
                by_rest - z / self._spreads,
                priors[2][1] - np.array([by_coarse.sum(), by_fine.sum()]) / 2.0,
            ]
        )
        return float(sum(each[0] for each in priors) - value - 0.5 * z @ z), gradient

    def _split(self, phi: Array) -> list[Array]:
        return np.split(phi, np.cumsum([*self._n, len(self._means)]))


def draw(data: Data, layout: Layout, prior: Prior, rng: np.random.Generator) -> list[Array]:
    """Draws of `theta` from its posterior, most of `SAMPLES / THINNING` of them distinct.

    Args:
        data: At least one row; the first `FIT_ROWS` are used.
        layout: Of the hyper-parameters.
        prior: Over what SAAS leaves as it is.
        rng: Decides everything.

    Raises:
        ValueError: No possible place was found to start from.
    """
    kept = slice(FIT_ROWS)
    first = Data(data.X[kept], data.r[kept], data.y[kept], data.floor[kept])
    density = Density(first, layout, prior)
    sampler = Nuts(density, density.dimensions, max_depth=MAX_DEPTH, rng=rng)
    sampler.settle()
    found = sampler.draw(WARMUP, SAMPLES)[THINNING - 1 :: THINNING]
    return [density.theta(phi) for phi in found]


def _half_cauchy(log_x: Array, scale: float) -> tuple[float, Array]:
    """Log density of x ~ half-Cauchy(scale) at log x, the Jacobian included, and its gradient."""
    squared = (np.exp(log_x) / scale) ** 2
    return float((log_x - np.log1p(squared)).sum()), 1.0 - 2.0 * squared / (1.0 + squared)
