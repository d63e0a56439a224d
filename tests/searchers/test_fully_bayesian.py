"""The SAAS posterior against torch's distributions, and what its draws are good for."""

import numpy as np
import pytest
import torch

from autopeft.searchers import fully_bayesian
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.features import Features
from autopeft.searchers.front import utilities
from autopeft.searchers.fully_bayesian import Density, draw
from autopeft.searchers.gaussian_process import (
    Data,
    Kernel,
    Layout,
    Prior,
    Worlds,
    negative_log_likelihood,
)
from autopeft.searchers.registry import make_searcher
from autopeft.searchers.surrogate import fit_quality

D, COARSE, RUNGS = 6, 2, 2


@pytest.fixture
def layout() -> Layout:
    return Layout(COARSE, D, RUNGS, scale_coarse=2**0.5, scale_fine=D**0.5)


@pytest.fixture
def data() -> Data:
    """Only inputs 0 and 3 matter."""
    rng = np.random.default_rng(0)
    X, r = rng.random((36, D)), rng.integers(0, RUNGS, 36)
    y = np.sin(5 * X[:, 0]) + X[:, 3] - 0.4 * (RUNGS - 1 - r) + 0.05 * rng.normal(size=36)
    return Data(X, r, (y - y.mean()) / y.std(), np.full(36, 1e-3))


def test_the_density_is_likelihood_times_half_cauchies(data, layout) -> None:
    density = Density(data, layout, Prior())
    rng = np.random.default_rng(1)
    one, other = (0.4 * rng.normal(size=density.dimensions) - 1.0 for _ in range(2))

    def wanted(phi) -> float:
        means, spreads = layout.prior(Prior())
        n = COARSE + D
        rest = torch.distributions.Normal(
            torch.from_numpy(means[n:]), torch.from_numpy(spreads[n:])
        )
        logs = torch.from_numpy(phi)
        inverse, tau = logs[:n], logs[-2:]
        value = rest.log_prob(logs[n:-2]).sum()
        for scale, part in ((1.0, inverse), (0.1, tau)):
            cauchy = torch.distributions.HalfCauchy(torch.tensor(scale, dtype=torch.float64))
            value += (cauchy.log_prob(part.exp()) + part).sum()
        theta = phi[:-2].copy()
        theta[:COARSE] = -(phi[:COARSE] + phi[-2]) / 2
        theta[COARSE:n] = -(phi[COARSE:n] + phi[-1]) / 2
        assert density.theta(phi) == pytest.approx(theta)
        return float(value) - negative_log_likelihood(theta, data, layout)[0]

    found = density(one)[0] - density(other)[0]
    assert found == pytest.approx(wanted(one) - wanted(other), abs=1e-8)


def test_its_gradient(data, layout) -> None:
    density = Density(data, layout, Prior())
    phi = 0.4 * np.random.default_rng(1).normal(size=density.dimensions)
    _, slope = density(phi)
    steps = np.eye(len(phi)) * 1e-5
    numeric = [(density(phi + e)[0] - density(phi - e)[0]) / 2e-5 for e in steps]
    assert slope == pytest.approx(numeric, abs=1e-4, rel=1e-4)


def test_draws_find_the_inputs_that_matter(data, layout) -> None:
    draws = draw(data, layout, Prior(), np.random.default_rng(0))
    again = draw(data, layout, Prior(), np.random.default_rng(0))
    assert np.array_equal(draws, again)
    assert len({tuple(theta) for theta in draws}) > 4
    fine = np.median([theta[COARSE : COARSE + D] for theta in draws], axis=0)
    assert np.argmin(fine[1:]) + 1 == 3, "input 0 is the coarse kernel's as well"
    means = []
    for theta in draws:
        mean, _ = Worlds(data, Kernel(layout, theta), np.zeros((1, 0))).predict(data.X)
        means.append(mean[:, 0])
    full = data.r == RUNGS - 1
    assert np.abs(np.mean(means, 0)[full] - data.y[full]).mean() < 0.15


def test_several_kernels_predict_as_their_mixture(make_problem, observe, monkeypatch) -> None:
    monkeypatch.setattr(fully_bayesian, "WARMUP", 8)
    monkeypatch.setattr(fully_bayesian, "SAMPLES", 12)
    problem = make_problem(initial=0)
    proposals = make_searcher("random", problem).ask(24)
    observations = [observe(i, p.configuration) for i, p in enumerate(proposals)]
    configurations = [each.configuration for each in observations]
    encoding = Encoding.of(problem, Features(problem), configurations)
    model = fit_quality(
        problem, encoding, observations[:18], Prior(), rng=np.random.default_rng(0)
    )
    assert len(model.kernels) == 3
    rows = encoding.rows(configurations[18:])
    mean, sd = model.predict(rows)
    draws = np.random.default_rng(1).normal(size=(6000, len(rows)))
    worlds = model.worlds(draws)
    values = worlds.imagine(rows)
    assert values.mean(1) == pytest.approx(mean, abs=0.02)
    assert values.std(1) == pytest.approx(sd, rel=0.1)
    true = np.array([utilities(problem.frame, o.objectives)[0] for o in observations[18:]])
    assert np.abs(mean - true).mean() < np.abs(true - true.mean()).mean()


def test_it_is_an_option_of_the_searcher(make_problem, observe, monkeypatch) -> None:
    monkeypatch.setattr(fully_bayesian, "WARMUP", 8)
    monkeypatch.setattr(fully_bayesian, "SAMPLES", 8)

    def ask(surrogate: str) -> list[str]:
        problem = make_problem(initial=0, surrogate=surrogate)
        searcher = make_searcher("gp", problem)
        proposals = make_searcher("random", problem).ask(16)
        searcher.tell([observe(i, p.configuration) for i, p in enumerate(proposals)])
        return [each.configuration.hash for each in searcher.ask(2)]

    assert ask("saas-nuts") == ask("saas-nuts") != ask("map")
