"""SAAS surrogates: Gaussian processes that expect few inputs to matter.

The model of Eriksson and Jankowiak (arXiv 2103.00349) as in BoTorch's `SaasPyroModel`: a
Matern-5/2 kernel whose inverse squared lengthscales are `tau * inverse_k` with half-Cauchy priors
on both, a prior on scale, mean and noise. Hyper-parameters are drawn from their posterior by NUTS.
The log density has a closed-form gradient here, so that needs neither JAX nor Pyro: checked
against both in the tests.

Notation: `X` is `[n, D]`, of which the first `d` columns are read, `y` `[n]`; hyper-parameters are
`[S, d + 4]` in logarithms but for the mean: scale, mean, noise above its floor, tau, inverse_k.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.searchers.bo import (
    GaussianMixturePosterior,
    GPyTorchPosterior,
    Model,
    MultivariateNormal,
)
from autopeft.searchers.nuts import Nuts

Vector = NDArray[np.float64]

WARMUP, SAMPLES, THINNING, MAX_DEPTH = 128, 64, 4, 6
"""Of NUTS: AutoPEFT's settings (BoTorch's defaults are 4 times as many). 16 draws are kept."""

LEAST_NOISE = 1e-4
"""Smallest noise variance, of standardised outputs (BoTorch's own bound)."""

SCALE_SHAPE, SCALE_RATE = 2.0, 0.15
NOISE_SHAPE, NOISE_RATE = 0.9, 10.0
TAU_SCALE = 0.1
"""The priors: Gamma on the scale and on the noise, half-Cauchy on tau (on inverse_k: 1), standard
normal on the mean."""

FARTHEST = 200.0
"""Logarithms of hyper-parameters beyond this are impossible: their squares must be numbers."""

_JITTERS = (0.0, 1e-8, 1e-6, 1e-4)
_ROOT5 = math.sqrt(5.0)


class SaasDensity:
    """The posterior density of the hyper-parameters given standardised data."""

    def __init__(self, X: Tensor, y: Tensor, floor: float = LEAST_NOISE) -> None:
        """Prepare what no hyper-parameter changes.

        Args:
            X: `[n, d]` float64, near the unit cube.
            y: `[n]` float64, of mean 0 and variance 1 or so.
            floor: Smallest noise variance.
        """
        self._X, self._squares, self._y, self._floor = X, X * X, y, floor

    def of_logarithms(self, q: Vector) -> tuple[float, Vector]:
        """The log density of the logarithms (their Jacobian included), and its gradient."""
        value, gradient = self.of_values(q)
        if not math.isfinite(value):
            return value, gradient
        jacobian = np.ones(len(q))
        jacobian[1] = 0.0
        return value + float(jacobian @ q), gradient + jacobian

    def of_values(self, q: Vector) -> tuple[float, Vector]:
        """The log density of the values themselves at `q`, and its gradient towards `q`."""
        likelihood, gradient = self._likelihood(q)
        if not math.isfinite(likelihood):
            return -math.inf, gradient
        mean = q[1]
        scale, noise, tau, inverse = np.exp(q[0]), np.exp(q[2]), np.exp(q[3]), np.exp(q[4:])
        tau_square, squares = (tau / TAU_SCALE) ** 2, inverse**2
        value = (
            likelihood
            + (SCALE_SHAPE - 1.0) * q[0]
            - SCALE_RATE * scale
            - 0.5 * mean**2
            + (NOISE_SHAPE - 1.0) * q[2]
            - NOISE_RATE * noise
            - math.log1p(tau_square)
            - np.log1p(squares).sum()
        )
        gradient[0] += SCALE_SHAPE - 1.0 - SCALE_RATE * scale
        gradient[1] -= mean
        gradient[2] += NOISE_SHAPE - 1.0 - NOISE_RATE * noise
        gradient[3] -= 2.0 * tau_square / (1.0 + tau_square)
        gradient[4:] -= 2.0 * squares / (1.0 + squares)
        return float(value), gradient

    def _likelihood(self, q: Vector) -> tuple[float, Vector]:
        """The log marginal likelihood and its gradient.

        The gradient is half the trace of `(alpha alpha' - inverse(K)) dK`.
        """
        gradient = np.full(len(q), np.nan)
        if not np.abs(q).max() < FARTHEST:
            return -math.inf, gradient
        X, squares = self._X, self._squares
        scale, noise = math.exp(q[0]), math.exp(q[2])
        weights = torch.from_numpy(np.exp(q[3] + q[4:]))
        distances = _squared_distances(X * weights, X, squares @ weights, squares @ weights)
        decay, K = _matern(distances, scale)
        root = K.clone()
        root.diagonal().add_(noise + self._floor)
        root, failed = torch.linalg.cholesky_ex(root)
        if int(failed):
            return -math.inf, gradient
        inverse = torch.cholesky_inverse(root)
        rest = self._y - q[1]
        alpha = torch.mv(inverse, rest)
        value = -0.5 * float(rest @ alpha) - float(root.diagonal().log().sum())
        A = torch.outer(alpha, alpha).sub_(inverse)
        gradient[0] = 0.5 * float(torch.dot(A.view(-1), K.view(-1)))
        gradient[1] = float(alpha.sum())
        gradient[2] = 0.5 * noise * float(A.diagonal().sum())
        A.mul_(decay).mul_(-scale * 5.0 / 6.0)
        towards = (squares.T @ A.sum(1) - (X * (A @ X)).sum(0)).mul_(weights).numpy()
        gradient[3] = towards.sum()
        gradient[4:] = towards
        return value, gradient


class SaasGP(Model):  # type: ignore[misc]
    """A mixture of GPs, one per draw of the hyper-parameters.

    As a BoTorch model it gives, unless `mixture`, one Gaussian with the mixture's mean and
    covariance: it then goes wherever a `SingleTaskGP` goes, at its price. With `mixture` it is an
    ensemble in BoTorch's sense (`GaussianMixturePosterior`), over which acquisitions average.
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        hyper: Vector,
        *,
        floor: float = LEAST_NOISE,
        mixture: bool = False,
        centre: float = 0.0,
        spread: float = 1.0,
    ) -> None:
        """Condition on data.

        Args:
            X: `[n, d]` float64; what is predicted for may have more columns.
            y: `[n]` float64, standardised.
            hyper: `[S, d + 4]`.
            floor: Smallest noise variance.
            mixture: Which posterior to give.
            centre: What `y` was before: `centre + spread * y`.
            spread: See `centre`.
        """
        super().__init__()
        self._is_ensemble = self._is_fully_bayesian = mixture
        self.n_inputs = X.shape[-1]
        self._centre, self._spread = centre, spread
        drawn = torch.from_numpy(hyper)
        self.scale, self.mean = drawn[:, 0].exp(), drawn[:, 1]
        self.noise = floor + drawn[:, 2].exp()
        self.weights = (drawn[:, 3:4] + drawn[:, 4:]).exp()
        self._X = X
        K = self.kernel(X, X)
        K.diagonal(dim1=-2, dim2=-1).add_(self.noise.unsqueeze(-1))
        self._root = rooted(K)
        rest = (y - self.mean.unsqueeze(-1)).unsqueeze(-1)
        self._alpha = torch.cholesky_solve(rest, self._root)

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """Of an ensemble, the draws."""
        return torch.Size([len(self.scale)] if self._is_ensemble else [])

    @property
    def lengthscales(self) -> Tensor:
        """`[S, d]`."""
        return self.weights.rsqrt()

    def kernel(self, A: Tensor, B: Tensor) -> Tensor:
        """The prior covariances `[S, ..., a, b]` of `[..., a, d]` and `[..., b, d]`."""
        lead = (-1, *(1 for _ in A.shape[:-2]), 1)
        weights = self.weights.view(*lead, self.n_inputs)
        distances = _squared_distances(
            A * weights, B, (A * A * weights).sum(-1), (B * B * weights).sum(-1)
        )
        return _matern(distances, self.scale.view(*lead, 1))[1]

    def project(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """The means `[S, b]` at `[b, d]` points, and their rows' projections on the data.

        The covariance of two points is their prior one less the product of their projections,
        `[S, n, b]`.
        """
        cross = self.kernel(self._X, X)
        mean = self.mean.unsqueeze(-1) + (cross * self._alpha).sum(-2)
        return mean, torch.linalg.solve_triangular(self._root, cross, upper=False)

    def joint(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """The means `[S, ..., q]` and covariances `[S, ..., q, q]` at `[..., q, d]` points.

        Rows that the whole batch shares (an acquisition's baseline) are projected once.
        """
        flat = X.reshape(-1, *X.shape[-2:])
        count, q = flat.shape[:2]
        common = (flat == flat[:1]).all(-1).all(0)
        shared, n_shared = flat[0, common], int(common.sum())
        mean, V = self.project(torch.cat([shared, flat[:, ~common].flatten(0, 1)]))
        S, n, own = *V.shape[:2], q - n_shared
        once, V = V[..., :n_shared], V[..., n_shared:]
        across = (once.mT @ V).view(S, n_shared, count, own).transpose(1, 2)
        V = V.reshape(S, n, count, own).transpose(1, 2)
        above = torch.cat([(once.mT @ once).unsqueeze(1).expand(-1, count, -1, -1), across], -1)
        explained = torch.cat([above, torch.cat([across.mT, V.mT @ V], -1)], -2)
        means = torch.cat(
            [
                mean[:, :n_shared].unsqueeze(1).expand(-1, count, -1),
                mean[:, n_shared:].view(S, count, own),
            ],
            -1,
        )
        order = torch.cat([common.nonzero(), (~common).nonzero()]).squeeze(-1).argsort()
        covariance = self.kernel(flat, flat) - explained[..., order, :][..., order]
        lead = (S, *X.shape[:-2])
        return means[..., order].view(*lead, q), covariance.view(*lead, q, q)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool = False,
        posterior_transform: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The posterior at `[..., q, D]` points."""
        mean, covariance = self.joint(X[..., : self.n_inputs])
        if observation_noise:
            noise = self.noise.view(-1, *(1 for _ in mean.shape[1:]))
            covariance.diagonal(dim1=-2, dim2=-1).add_(noise)
        mean = self._centre + self._spread * mean
        covariance = self._spread**2 * covariance
        covariance.diagonal(dim1=-2, dim2=-1).clamp_min_(1e-12)
        found: Any
        if self._is_ensemble:
            normal = MultivariateNormal(mean.movedim(0, -2), covariance.movedim(0, -3))
            found = GaussianMixturePosterior(normal)
        else:
            middle = mean.mean(0)
            apart = (mean - middle).unsqueeze(-1)
            matched = (covariance + apart @ apart.transpose(-1, -2)).mean(0)
            found = GPyTorchPosterior(MultivariateNormal(middle, matched))
        return found if posterior_transform is None else posterior_transform(found)


def draw_hyper_parameters(
    X: Tensor,
    y: Tensor,
    *,
    rng: np.random.Generator,
    floor: float = LEAST_NOISE,
    warmup: int = WARMUP,
    samples: int = SAMPLES,
    thinning: int = THINNING,
    max_depth: int = MAX_DEPTH,
) -> Vector:
    """Draws from the hyper-parameters' posterior by NUTS: `[samples / thinning, d + 4]`.

    Args:
        X: `[n, d]` float64.
        y: `[n]` float64, standardised.
        rng: Decides the draws.
        floor: Smallest noise variance.
        warmup: Steps of the chain that are thrown away.
        samples: Steps after these.
        thinning: Every so many steps one is kept.
        max_depth: A trajectory has at most `2 ** max_depth - 1` steps.
    """
    density = SaasDensity(X, y, floor)
    with torch.no_grad():
        chain = Nuts(density.of_logarithms, X.shape[-1] + 4, max_depth=max_depth, rng=rng)
        chain.settle()
        return chain.draw(warmup, samples)[::thinning]


def rooted(K: Tensor) -> Tensor:
    """The lower Cholesky factors of `[..., n, n]`, with as much jitter as they need.

    Raises:
        torch.linalg.LinAlgError: There is no jitter small enough.
    """
    size = K.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp_min(1e-12)
    root: Tensor
    for jitter in _JITTERS:
        shifted = K.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(jitter * size)
        root, failed = torch.linalg.cholesky_ex(shifted)
        if not bool(failed.any()):
            return root
    root = torch.linalg.cholesky(shifted)
    return root


def _squared_distances(scaled: Tensor, B: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
    """`[..., a, b]` weighted squared distances, from `[..., a, d]` rows times their weights."""
    found: Tensor = scaled @ B.transpose(-1, -2)
    found.mul_(-2.0).add_(norms_a.unsqueeze(-1)).add_(norms_b.unsqueeze(-2))
    return found.clamp_min_(1e-30)


def _matern(squared: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """`(1 + sqrt5 r) exp(-sqrt5 r)`, which its slope needs, and the Matern-5/2 covariance."""
    r = squared.sqrt().mul_(_ROOT5)
    decay = torch.exp(-r)
    growing = r.add_(1.0).mul_(decay)
    return growing, torch.addcmul(growing, squared, decay, value=5.0 / 3.0).mul_(scale)
