import math

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from autopeft.searchers.bo import (
    GenericDeterministicModel,
    MaternKernel,
    ModelList,
    SingleTaskGP,
    get_sampler,
    qLogNoisyExpectedHypervolumeImprovement,
)
from autopeft.searchers.reference.numerics import numerics
from autopeft.searchers.reference.saas import (
    SaasDensity,
    SaasGP,
    draw_hyper_parameters,
)


def data(n=40, d=20, seed=0, noise=0.05):
    """Of `d` inputs the third alone matters."""
    rng = np.random.default_rng(seed)
    X = rng.random((n, d))
    y = np.sin(5.0 * X[:, 2]) + rng.normal(0.0, noise, n)
    return torch.from_numpy(X), torch.from_numpy(y)


def hyper(S=3, d=4, seed=0):
    drawn = np.random.default_rng(seed).normal(0.0, 0.5, (S, d + 4))
    drawn[:, 2] -= 3.0
    return drawn


@pytest.mark.parametrize("of", ["of_values", "of_logarithms"])
def test_the_gradient_is_that_of_the_density(of: str) -> None:
    X, y = data(15, 4)
    density = getattr(SaasDensity(X, y), of)
    q = hyper(1)[0]
    step = 1e-5
    numeric = [(density(q + h)[0] - density(q - h)[0]) / (2 * step) for h in np.eye(8) * step]
    assert density(q)[1] == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_the_density_is_botorchs() -> None:
    """Up to a constant, to which four places agree."""
    pytest.importorskip("numpyro", reason="needs botorch[fully_bayesian]")
    import jax
    from botorch.models.fully_bayesian import SaasPyroModel
    from numpyro.infer.util import potential_energy

    X, y = data(15, 4)
    density = SaasDensity(X, y)
    differences = []
    with jax.enable_x64(True):
        model = SaasPyroModel()
        model.set_inputs(X, y.unsqueeze(-1))
        for q in hyper(4):
            sites = {
                "outputscale": q[0],
                "mean": q[1],
                "noise": q[2],
                "kernel_tausq": q[3],
                "_kernel_inv_length_sq": jax.numpy.array(q[4:]),
            }
            theirs = -float(potential_energy(model.sample, (), {}, sites))
            differences.append(density.of_logarithms(q)[0] - theirs)
    assert differences == pytest.approx([differences[0]] * 4, abs=1e-8)


def test_impossible_hyper_parameters_are_no_error() -> None:
    X, y = data(5, 3)
    for q in (np.full(7, 900.0), np.full(7, np.nan)):
        assert SaasDensity(X, y).of_logarithms(q)[0] == -math.inf


def test_predictions_are_those_of_a_gp_with_the_same_hyper_parameters() -> None:
    X, y = data(15, 4)
    drawn = hyper()
    at = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, covariance = SaasGP(X, y, drawn).joint(at)
    for index, q in enumerate(drawn):
        with torch.no_grad():
            kernel = MaternKernel(nu=2.5, ard_num_dims=4).double()
            kernel.lengthscale = torch.from_numpy(np.exp(-0.5 * (q[3] + q[4:])))
            noise = torch.full((15, 1), math.exp(q[2]) + 1e-4, dtype=torch.float64)
            scale = math.exp(q[0])
            # A variance of 1 in place of `scale`: all is divided by it, and the mean taken off.
            model = SingleTaskGP(
                X,
                (y - q[1]).unsqueeze(-1),
                noise / scale,
                covar_module=kernel,
                outcome_transform=None,
            )
            model.mean_module.constant.fill_(0.0)
            theirs = model.posterior(at)
            assert torch.allclose(mean[index], q[1] + theirs.mean.squeeze(-1), atol=1e-8)
            expected = scale * theirs.distribution.covariance_matrix
            assert torch.allclose(covariance[index], expected, atol=1e-8)


def test_rows_that_a_batch_shares_are_predicted_alike() -> None:
    X, y = data(15, 4)
    model = SaasGP(X, y, hyper())
    at = torch.rand(7, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at[:, 1] = at[0, 1]
    mean, covariance = model.joint(at)
    for index in range(7):
        alone_mean, alone = model.joint(at[index])
        assert torch.allclose(mean[:, index], alone_mean)
        assert torch.allclose(covariance[:, index], alone, atol=1e-10)


def test_the_gaussian_is_the_mixtures() -> None:
    X, y = data(15, 4)
    at = torch.rand(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matched = SaasGP(X, y, hyper(), centre=2.0, spread=3.0).posterior(at)
    mixture = SaasGP(X, y, hyper(), centre=2.0, spread=3.0, mixture=True).posterior(at)
    assert matched.mean.shape == (2, 3, 1)
    assert torch.allclose(matched.mean, mixture.mixture_mean)
    assert torch.allclose(matched.variance, mixture.mixture_variance)
    apart = mixture.mean - matched.mean.unsqueeze(-3)
    each = mixture.distribution.covariance_matrix + apart @ apart.mT
    assert torch.allclose(matched.distribution.covariance_matrix, each.mean(-3))


@pytest.mark.parametrize("mixture", [False, True])
def test_it_goes_with_known_objectives_into_qlognehvi(mixture: bool) -> None:
    X, y = data(15, 5)
    saas = SaasGP(X[:, :4], y, hyper(), mixture=mixture)
    known = GenericDeterministicModel(lambda at: at[..., 4:5], num_outputs=1)
    model = ModelList(saas, known)
    with numerics(0), torch.no_grad():
        sampler = get_sampler(model.posterior(X[:1]), torch.Size([16]), seed=0)
        gain = qLogNoisyExpectedHypervolumeImprovement(
            model, [-2.0, 0.0], X, sampler=sampler, prune_baseline=False, cache_root=False
        )
        better, worse = torch.rand(2, 5, dtype=torch.float64)
        better[2], better[4] = 0.3, 2.0
        worse[2], worse[4] = 0.9, 0.0
        gains = gain(torch.stack([better, worse]).unsqueeze(1))
    assert gains[0] > gains[1] + 1.0


def test_one_input_of_twenty_is_found() -> None:
    X, y = data(30)
    at, truth = data(60, seed=1, noise=0.0)
    with numerics(0):
        centre, spread = float(y.mean()), float(y.std())
        standard = (y - centre) / spread
        drawn = draw_hyper_parameters(X, standard, rng=np.random.default_rng(0))
        model = SaasGP(X, standard, drawn, centre=centre, spread=spread)
        lengthscales = model.lengthscales.median(0).values
        mean = model.posterior(at).mean.squeeze(-1)
    others = torch.cat([lengthscales[:2], lengthscales[3:]])
    assert lengthscales[2] < 1.5
    assert others.median() > 10.0 * lengthscales[2]
    kernel = ConstantKernel() * Matern(nu=2.5) + WhiteKernel(0.01)
    isotropic = GaussianProcessRegressor(kernel, normalize_y=True).fit(X.numpy(), y.numpy())
    error = float((mean - truth).pow(2).mean().sqrt())
    assert error < 0.5 * np.sqrt(np.mean((isotropic.predict(at.numpy()) - truth.numpy()) ** 2))


def test_the_seed_decides() -> None:
    X, y = data(8, 3)
    settings = {"warmup": 8, "samples": 8, "thinning": 4, "max_depth": 3}

    def draw(seed: int):
        return draw_hyper_parameters(X, y, rng=np.random.default_rng(seed), **settings)

    assert draw(1).shape == (2, 7)
    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize("y", [[0.5], [0.5, 0.5], [0.3, 0.3, 0.9]])
def test_few_or_equal_outputs(y: list[float]) -> None:
    X, target = torch.rand(len(y), 3, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    with numerics(0):
        drawn = draw_hyper_parameters(X, target, rng=np.random.default_rng(0), warmup=16)
        found = SaasGP(X, target, drawn).posterior(X)
    assert found.mean.isfinite().all()
    assert found.mean.min() > -0.5
    assert found.mean.max() < 1.5


@pytest.mark.slow
def test_the_posterior_is_numpyros() -> None:
    """Medians of the hyper-parameters' logarithms, in units of their spread."""
    pytest.importorskip("numpyro", reason="needs botorch[fully_bayesian]")
    import jax
    from botorch.models.fully_bayesian import SaasPyroModel
    from numpyro.infer import MCMC, NUTS

    X, y = data(40, 6)
    y = (y - y.mean()) / y.std()
    ours = draw_hyper_parameters(
        X, y, rng=np.random.default_rng(0), warmup=300, samples=1000, thinning=1
    )
    with jax.enable_x64(True):
        model = SaasPyroModel()
        model.set_inputs(X, y.unsqueeze(-1))
        chain = MCMC(
            NUTS(model.sample, dense_mass=True, max_tree_depth=6),
            num_warmup=300,
            num_samples=1000,
            progress_bar=False,
        )
        chain.run(jax.random.PRNGKey(0))
        drawn = {name: np.asarray(values) for name, values in chain.get_samples().items()}
    theirs = np.column_stack(
        [
            np.log(drawn["outputscale"]),
            drawn["mean"],
            np.log(drawn["noise"]),
            np.log(drawn["kernel_tausq"]),
            np.log(drawn["_kernel_inv_length_sq"]),
        ]
    )
    apart = (np.median(ours, 0) - np.median(theirs, 0)) / theirs.std(0)
    assert np.abs(apart).max() < 0.35
    assert np.std(ours, 0) == pytest.approx(np.std(theirs, 0), rel=0.4)
