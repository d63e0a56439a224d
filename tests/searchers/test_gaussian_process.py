"""The process against gpytorch, finite differences and dense algebra in float64."""

import gpytorch
import numpy as np
import pytest
import torch

from autopeft.searchers.gaussian_process import (
    JITTER,
    Data,
    Kernel,
    Layout,
    Prior,
    Worlds,
    fit,
    matern,
    negative_log_posterior,
)

N, D, COARSE, RUNGS = 40, 5, 2, 3


@pytest.fixture
def layout() -> Layout:
    return Layout(COARSE, D, RUNGS, scale_coarse=2**0.5, scale_fine=D**0.5)


@pytest.fixture
def data() -> Data:
    rng = np.random.default_rng(0)
    X, r = rng.random((N, D)), rng.integers(0, RUNGS, N)
    y = np.sin(4 * X[:, 0]) + X[:, 3] - 0.4 * (RUNGS - 1 - r) + 0.05 * rng.normal(size=N)
    return Data(X, r, (y - y.mean()) / y.std(), np.full(N, 1e-3))


@pytest.fixture
def theta(layout) -> np.ndarray:
    means, spreads = layout.prior(Prior())
    return means + 0.3 * spreads * np.random.default_rng(1).normal(size=len(means))


def dense(kernel: Kernel, A, a, B, b) -> np.ndarray:
    """The covariance written out with gpytorch's Matern kernels, element by element."""

    def base(columns, lengthscale):
        of = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=columns).double()
        of.lengthscale = torch.from_numpy(lengthscale)
        x, z = torch.from_numpy(A[:, :columns]), torch.from_numpy(B[:, :columns])
        return of(x, z).to_dense().detach().numpy()

    coarse, fine = kernel.lengthscales
    k = kernel.weights[0] * base(COARSE, coarse) + kernel.weights[1] * base(D, fine)
    for i, j in np.ndindex(*k.shape):
        same, lower = a[i] == b[j], a[i] < RUNGS - 1
        k[i, j] *= kernel.shared[a[i]] * kernel.shared[b[j]] + same * kernel.own[a[i]] ** 2
        k[i, j] += 3.0**2 + 1.5**2 * (same and lower)
    return k


def test_the_kernel_is_gpytorchs(data, layout, theta) -> None:
    kernel = Kernel(layout, theta)
    ours = kernel(data.X, data.r, data.X[:7], data.r[:7])
    assert np.allclose(ours, dense(kernel, data.X, data.r, data.X[:7], data.r[:7]), atol=1e-9)
    assert kernel.variance(data.r) == pytest.approx(
        np.diag(kernel(data.X, data.r, data.X, data.r))
    )
    assert kernel.shared[-1] == 1.0
    assert kernel.own[-1] == 0.0


def test_the_loss_is_the_marginal_likelihood(data, layout, theta) -> None:
    means, spreads = layout.prior(Prior())
    kernel = Kernel(layout, theta)
    K = dense(kernel, data.X, data.r, data.X, data.r)
    K += np.diag(kernel.noise[data.r] + data.floor + JITTER)
    normal = torch.distributions.MultivariateNormal(torch.zeros(N).double(), torch.from_numpy(K))
    prior = torch.distributions.Normal(torch.from_numpy(means), torch.from_numpy(spreads))
    wanted = (
        -normal.log_prob(torch.from_numpy(data.y)) - prior.log_prob(torch.from_numpy(theta)).sum()
    )
    constant = 0.5 * np.log(2 * np.pi) * (N + len(theta)) + np.log(spreads).sum()
    value, _ = negative_log_posterior(theta, data, layout, means, spreads)
    assert value + constant == pytest.approx(float(wanted), abs=1e-8)


def test_the_gradient(data, layout, theta) -> None:
    means, spreads = layout.prior(Prior())

    def loss(at):
        return negative_log_posterior(at, data, layout, means, spreads)

    _, slope = loss(theta)
    step = 1e-5
    steps = np.eye(len(theta)) * step
    numeric = [(loss(theta + e)[0] - loss(theta - e)[0]) / (2 * step) for e in steps]
    assert slope == pytest.approx(numeric, abs=1e-5, rel=1e-5)


def test_the_derivative_of_matern() -> None:
    A, B, scale = (
        np.random.default_rng(0).random((3, 4)).reshape(3, 4),
        np.zeros((2, 4)),
        np.ones(4),
    )
    _, factor = matern(A, B, scale)
    step = np.array([0.0, 0.0, 1e-6, 0.0])
    up, down = matern(A, B, np.exp(step))[0], matern(A, B, np.exp(-step))[0]
    wanted = factor * (A[:, None, 2] - B[None, :, 2]) ** 2
    assert (up - down) / 2e-6 == pytest.approx(wanted, abs=1e-8)


def test_a_fit_improves_on_the_prior_and_finds_what_matters(data, layout) -> None:
    means, spreads = layout.prior(Prior())
    found = fit(data, layout, Prior(), iterations=60)
    before = negative_log_posterior(means, data, layout, means, spreads)[0]
    after, slope = negative_log_posterior(found, data, layout, means, spreads)
    assert after < before - 5.0
    assert np.abs(slope).max() < 0.5
    assert (fit(data, layout, Prior(), iterations=60) == found).all()


def test_worlds_are_the_posterior(data, layout, theta) -> None:
    kernel = Kernel(layout, theta)
    X = np.random.default_rng(2).random((6, D))
    r = np.full(6, RUNGS - 1)
    K = dense(kernel, data.X, data.r, data.X, data.r)
    K += np.diag(kernel.noise[data.r] + data.floor + JITTER)
    cross = dense(kernel, data.X, data.r, X, r)
    mean = cross.T @ np.linalg.solve(K, data.y)
    covariance = dense(kernel, X, r, X, r) - cross.T @ np.linalg.solve(K, cross)
    draws = np.random.default_rng(3).normal(size=(4000, 6))
    worlds = Worlds(data, kernel, draws)
    means, sd = worlds.predict(X)
    assert means == pytest.approx(np.repeat(mean[:, None], 4000, 1), abs=1e-7)
    assert sd[:, 0] ** 2 == pytest.approx(np.diag(covariance), abs=1e-7)
    values = np.concatenate([worlds.imagine(X[:2]), worlds.imagine(X[2:])])
    assert values.mean(1) == pytest.approx(mean, abs=0.05)
    assert np.cov(values) == pytest.approx(covariance, abs=0.03)


def test_what_was_imagined_is_known_in_its_world(data, layout, theta) -> None:
    worlds = Worlds(data, Kernel(layout, theta), np.random.default_rng(0).normal(size=(5, 8)))
    X = np.random.default_rng(2).random((8, D))
    values = np.concatenate([worlds.imagine(X[:3]), worlds.imagine(X[3:])])
    means, sd = worlds.predict(X)
    assert means == pytest.approx(values, abs=1e-3)
    assert sd.max() < 1e-2
    assert worlds.imagine(np.empty((0, D))).shape == (0, 5)


def test_lower_rungs_inform_the_full_budget() -> None:
    """Final values that were never measured follow from early ones, by what pairs show."""
    rng = np.random.default_rng(0)
    X = rng.random((60, 1))
    f = np.sin(6 * X[:, 0])
    early, late = 0.5 * f - 1.0, f
    pairs = np.arange(20)
    data = Data(
        np.concatenate([X, X[pairs]]),
        np.concatenate([np.zeros(60, int), np.ones(20, int)]),
        np.concatenate([early, late[pairs]]) + 0.01 * rng.normal(size=80),
        np.zeros(80),
    )
    layout = Layout(1, 1, 2, 1.0, 1.0)

    def error(data: Data) -> float:
        kernel = Kernel(layout, fit(data, layout, Prior(), iterations=60))
        means, _ = Worlds(data, kernel, np.zeros((1, 0))).predict(X)
        return float(np.abs(means[:, 0] - late).max())

    late_only = Data(*(part[60:] for part in (data.X, data.r, data.y, data.floor)))
    assert error(data) < 0.1
    assert error(data) < 0.5 * error(late_only)
