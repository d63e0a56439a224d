"""The Gaussian process behind the `gp` searcher: one quality at several rungs, exact and fast.

Notation: `X` is `[n, d]` inputs, `r` the rung of each row as an index (0 = the lowest, R - 1 = the
full budget), `y` the `[n]` values, all float64. The model is an intrinsic coregionalisation model
(Alvarez et al., arXiv 1106.6251):

    cov(y_i, y_j) = (s_r s_r' + d_r^2 [r = r']) * k(x_i, x_j) + o^2 + v^2 [r = r'] + noise,
    k = w_1 matern(X over its first columns) + w_2 matern(X over all columns)

A lower rung shows the final quality scaled by `s` and a deviation of its own of size `d`; at the
full budget s = 1 and d = 0. The offsets o (all rungs) and v (each rung) are integrated out, so a
rung needs no mean of its own. As rungs select who goes on by what was measured there, and those
measurements are among the data, the selection biases nothing.

Hyper-parameters are the mode of likelihood times priors, found by L-BFGS-B with the gradient in
closed form: a step costs one Cholesky factorisation and matrix products, no graph is recorded.
The lengthscales' prior is log-normal and grows with the root of the dimension (Hvarfner et al.,
arXiv 2402.02229).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, lapack, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]
Rungs = NDArray[np.int64]

SQRT5 = math.sqrt(5.0)
JITTER = 1e-8
OFFSET, RUNG_OFFSET = 3.0, 1.5
"""Standard deviations of the common offset and of each lower rung's own, of standardised values:
wide, as accuracies after a tenth of the training may lie anywhere below the final ones."""

BOUND = 8.0
"""Hyper-parameters stay within this many prior standard deviations of the prior's mode."""


@dataclass(frozen=True)
class Prior:
    """Independent normal priors over the logarithms of the hyper-parameters.

    Attributes:
        coarse: Mode of the lengthscales of the first kernel, per root of its dimension.
        fine: The same of the second.
        spread: Standard deviation of the logarithm of a lengthscale.
        weights: Modes of w_1 and w_2.
        shared: Mode of s, for each lower rung.
        own: Mode of d.
        noise: Mode of the noise's variance, of standardised values.
    """

    coarse: float = 0.5
    fine: float = 0.7
    spread: float = 0.75
    weights: tuple[float, float] = (0.7, 0.5)
    shared: float = 0.6
    own: float = 0.5
    noise: float = 0.02


@dataclass(frozen=True)
class Layout:
    """Where each hyper-parameter stands in the vector that the optimiser sees.

    Attributes:
        n_coarse: Columns of the first kernel, which are the first of `X`.
        n_inputs: Columns of the second.
        n_rungs: Rungs.
        scale_coarse: Root of the number of independent inputs of the first kernel.
        scale_fine: The same of the second.
    """

    n_coarse: int
    n_inputs: int
    n_rungs: int
    scale_coarse: float
    scale_fine: float

    def prior(self, prior: Prior) -> tuple[Array, Array]:
        """Means and standard deviations of all hyper-parameters' logarithms."""
        lower = self.n_rungs - 1
        means = [
            np.full(self.n_coarse, math.log(prior.coarse * self.scale_coarse)),
            np.full(self.n_inputs, math.log(prior.fine * self.scale_fine)),
            np.log(prior.weights),
            np.full(lower, math.log(prior.shared)),
            np.full(lower, math.log(prior.own)),
            np.full(self.n_rungs, math.log(prior.noise)),
        ]
        spreads = [
            np.full(self.n_coarse + self.n_inputs, prior.spread),
            np.full(2, 0.7),
            np.full(2 * lower, 1.0),
            np.full(self.n_rungs, 1.0),
        ]
        return np.concatenate(means), np.concatenate(spreads)

    def split(self, theta: Array) -> list[Array]:
        """Lengthscales of both kernels, weights, s, d and noise: views of `theta`."""
        lower = self.n_rungs - 1
        sizes = [self.n_coarse, self.n_inputs, 2, lower, lower]
        return np.split(theta, np.cumsum(sizes))


@dataclass(frozen=True)
class Data:
    """What a process is conditioned on, standardised.

    Attributes:
        X: `[n, d]`.
        r: `[n]` rungs.
        y: `[n]`.
        floor: `[n]` known variance of the noise of each value.
    """

    X: Array
    r: Rungs
    y: Array
    floor: Array


def matern(A: Array, B: Array, lengthscale: Array) -> tuple[Array, Array]:
    """Matern-5/2 between rows, and its derivative's factor.

    Returns:
        `[n, m]` values `M`, and `G` such that dM / dlog(lengthscale_d) = G * (difference_d /
        lengthscale_d)^2.
    """
    A, B = A / lengthscale, B / lengthscale
    squared = (A**2).sum(1)[:, None] + (B**2).sum(1)[None, :] - 2.0 * (A @ B.T)
    distance = SQRT5 * np.sqrt(np.maximum(squared, 0.0))
    decay = np.exp(-distance)
    linear = 1.0 + distance
    return (linear + distance**2 / 3.0) * decay, (5.0 / 3.0) * linear * decay


class Kernel:
    """The covariance at one setting of the hyper-parameters."""

    def __init__(self, layout: Layout, theta: Array) -> None:
        self.layout = layout
        coarse, fine, weights, shared, own, noise = (np.exp(part) for part in layout.split(theta))
        self.lengthscales, self.weights, self.noise = (coarse, fine), weights, noise
        self.shared = np.append(shared, 1.0)
        self.own = np.append(own, 0.0)

    def rungs(self, a: Rungs, b: Rungs) -> Array:
        """`[n, m]`: how much of k two rungs share."""
        own = (a[:, None] == b[None, :]) * (self.own[a] ** 2)[:, None]
        return np.asarray(np.outer(self.shared[a], self.shared[b]) + own)

    def offsets(self, a: Rungs, b: Rungs) -> Array:
        """`[n, m]`: the covariance of the offsets; the full budget has the common one only."""
        lower = (a[:, None] == b[None, :]) & (a < self.layout.n_rungs - 1)[:, None]
        return np.asarray(OFFSET**2 + RUNG_OFFSET**2 * lower)

    def parts(self, A: Array, B: Array) -> list[tuple[Array, Array]]:
        """Both Matern kernels, unweighted, with their derivatives' factors."""
        n = self.layout.n_coarse
        coarse, fine = self.lengthscales
        return [matern(A[:, :n], B[:, :n], coarse), matern(A, B, fine)]

    def __call__(self, A: Array, a: Rungs, B: Array, b: Rungs) -> Array:
        """The covariance of noise-free values, `[n, m]`."""
        return self.rungs(a, b) * self.base(self.parts(A, B)) + self.offsets(a, b)

    def base(self, parts: Sequence[tuple[Array, Array]]) -> Array:
        """The weighted sum of both kernels."""
        (coarse, _), (fine, _) = parts
        return np.asarray(self.weights[0] * coarse + self.weights[1] * fine)

    def variance(self, a: Rungs) -> Array:
        """Its diagonal, `[n]`."""
        own = self.shared[a] ** 2 + self.own[a] ** 2
        lower = a < self.layout.n_rungs - 1
        return np.asarray(own * self.weights.sum() + OFFSET**2 + RUNG_OFFSET**2 * lower)


def fit(data: Data, layout: Layout, prior: Prior, *, iterations: int) -> Array:
    """The hyper-parameters' logarithms at the mode; the prior's where no step succeeds.

    Args:
        data: At least one row.
        layout: Of the hyper-parameters.
        prior: Their priors.
        iterations: L-BFGS-B steps at most.
    """
    means, spreads = layout.prior(prior)
    bounds = list(zip(means - BOUND * spreads, means + BOUND * spreads, strict=True))

    def loss(theta: Array) -> tuple[float, Array]:
        return negative_log_posterior(theta, data, layout, means, spreads)

    found = minimize(
        loss, means, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations}
    )
    theta: Array = found.x if np.isfinite(found.fun) and np.isfinite(found.x).all() else means
    return theta


def negative_log_posterior(
    theta: Array, data: Data, layout: Layout, means: Array, spreads: Array
) -> tuple[float, Array]:
    """The loss of a fit, up to a constant, and its gradient; infinite where singular."""
    value, slope = negative_log_likelihood(theta, data, layout)
    z = (theta - means) / spreads
    return value + float(0.5 * z @ z), slope + z / spreads


def negative_log_likelihood(theta: Array, data: Data, layout: Layout) -> tuple[float, Array]:
    """Up to a constant, with its gradient; infinite where the covariance is singular."""
    kernel = Kernel(layout, theta)
    rungs = kernel.rungs(data.r, data.r)
    parts = kernel.parts(data.X, data.X)
    base = kernel.base(parts)
    K = rungs * base + kernel.offsets(data.r, data.r)
    K[np.diag_indices_from(K)] += kernel.noise[data.r] + data.floor + JITTER
    try:
        L = cholesky(K, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return math.inf, np.zeros_like(theta)
    alpha = cho_solve((L, True), data.y, check_finite=False)
    inverse, _ = lapack.dpotri(L, lower=True)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    W = 0.5 * (np.outer(alpha, alpha) - inverse)  # d log likelihood / dK
    value = 0.5 * data.y @ alpha + np.log(np.diag(L)).sum()
    return float(value), -_slope(kernel, data, W, rungs, parts, base)


def _slope(
    kernel: Kernel,
    data: Data,
    W: Array,
    rungs: Array,
    parts: Sequence[tuple[Array, Array]],
    base: Array,
) -> Array:
    """d log likelihood / d theta, in the order of `Layout.split`."""
    shared_by = W * rungs
    X, n = data.X, kernel.layout.n_coarse
    slopes = []
    for w, (_, G), lengthscale, columns in zip(
        kernel.weights, parts, kernel.lengthscales, (X[:, :n], X), strict=True
    ):
        P, Z = w * shared_by * G, columns / lengthscale
        # sum_ij P_ij (z_i - z_j)^2, without an [n, n, d] array
        slopes.append(2.0 * (P.sum(1) @ Z**2 - (Z * (P @ Z)).sum(0)))
    slopes.append(
        np.array(
            [w * (shared_by * M).sum() for w, (M, _) in zip(kernel.weights, parts, strict=True)]
        )
    )
    lower = kernel.layout.n_rungs - 1
    members = data.r[None, :] == np.arange(kernel.layout.n_rungs)[:, None]
    by_base = W * base
    reach = by_base @ kernel.shared[data.r]
    s, d, noise = kernel.shared[:lower], kernel.own[:lower], kernel.noise
    slopes.append(2.0 * s * (members[:lower] @ reach))
    own = np.array([by_base[np.ix_(m, m)].sum() for m in members[:lower]])
    slopes.append(2.0 * d**2 * own.reshape(lower))
    slopes.append(noise * (members @ np.diag(W)))
    return np.concatenate(slopes)


class Worlds:
    """The posterior as `S` possible worlds, in each of which some further values are known.

    At first no value but the data is known and all worlds agree. `imagine` draws, in every world,
    the noise-free value of a point from what that world holds, and takes it as known from then on:
    so a front of points whose true values are uncertain is a front in every world, and what is
    chosen and not yet measured counts as measured there.

    Args:
        data: What was measured.
        kernel: The fitted covariance.
        draws: `[S, m]` standard normal draws: the i-th value imagined uses the i-th column.
    """

    def __init__(self, data: Data, kernel: Kernel, draws: Array) -> None:
        self._kernel, self._draws, self._used = kernel, draws, 0
        K = kernel(data.X, data.r, data.X, data.r)
        K[np.diag_indices_from(K)] += kernel.noise[data.r] + data.floor + JITTER
        self._L = _factor(K)
        self._X, self._r = data.X, data.r
        # Values relative to the part already explained: L^-1 y, [n, S]
        whitened = solve_triangular(self._L, data.y, lower=True, check_finite=False)
        self._whitened = np.repeat(whitened[:, None], len(draws), axis=1)

    def predict(self, X: Array) -> tuple[Array, Array]:
        """At the full budget, noise-free: means `[n, S]` and standard deviations `[n, 1]`."""
        r = np.full(len(X), self._kernel.layout.n_rungs - 1)
        cross = self._whiten(self._kernel(self._X, self._r, X, r))
        variance = self._kernel.variance(r) - (cross**2).sum(0)
        return cross.T @ self._whitened, np.sqrt(np.maximum(variance, 1e-12))[:, None]

    def imagine(self, X: Array) -> Array:
        """Draw the values of `[m, d]` points at the full budget in every world; `[m, S]`."""
        if not len(X):
            return np.empty((0, len(self._draws)))
        r = np.full(len(X), self._kernel.layout.n_rungs - 1)
        cross = self._whiten(self._kernel(self._X, self._r, X, r))
        own = self._kernel(X, r, X, r) - cross.T @ cross
        corner = _factor(own + JITTER * 10.0 * np.eye(len(X)))
        drawn = self._draws[:, self._used : self._used + len(X)].T
        values = cross.T @ self._whitened + corner @ drawn
        self._used += len(X)
        n, m = len(self._L), len(X)
        L = np.zeros((n + m, n + m))
        L[:n, :n], L[n:, :n], L[n:, n:] = self._L, cross.T, corner
        self._L = L
        self._X, self._r = np.concatenate([self._X, X]), np.concatenate([self._r, r])
        self._whitened = np.concatenate([self._whitened, drawn])
        return np.asarray(values)

    def _whiten(self, K: Array) -> Array:
        found: Array = solve_triangular(self._L, K, lower=True, check_finite=False)
        return found


def _factor(K: Array) -> Array:
    """A Cholesky factor, with as little jitter as it takes.

    Raises:
        LinAlgError: `K` is no covariance, even so.
    """
    for jitter in (0.0, 1e-8, 1e-6, 1e-4):
        try:
            L: Array = cholesky(K + jitter * np.eye(len(K)), lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        return L
    return np.asarray(cholesky(K + 1e-2 * np.eye(len(K)), lower=True))
