"""The expected gain against sampling, and against BoTorch."""

import numpy as np
import pytest
import torch
from botorch.acquisition.multi_objective import ExpectedHypervolumeImprovement
from botorch.models import ModelList
from botorch.models.deterministic import GenericDeterministicModel
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning

from autopeft.searchers.dominance import hypervolume
from autopeft.searchers.improvement import Cells, expected_improvement


@pytest.mark.parametrize("n_costs", [0, 1, 2])
def test_the_gain_is_what_sampling_finds(n_costs: int) -> None:
    rng = np.random.default_rng(n_costs)
    worlds, members, n = 3, 6, 4
    costs, qualities = rng.random((members, n_costs)), 0.8 * rng.random((members, worlds))
    at, mean, sd = (
        rng.random((n, n_costs)),
        0.9 * rng.random((n, worlds)),
        0.05 + 0.1 * rng.random((n, worlds)),
    )
    wanted = np.zeros(n)
    draws = (np.arange(2000) + 0.5) / 2000  # stratified, so that the mean is exact to 1e-3
    normal = np.sqrt(2) * torch.erfinv(torch.from_numpy(2 * draws - 1)).numpy()
    for world in range(worlds):
        front = np.column_stack([qualities[:, world], costs])
        before = hypervolume(front)
        for index in range(n):
            values = np.clip(mean[index, world] + sd[index, world] * normal, 0.0, 1.0)
            gains = [
                hypervolume(np.vstack([front, [value, *at[index]]])) - before for value in values
            ]
            wanted[index] += np.mean(gains) / worlds
    found = Cells.of(costs, qualities).gains(at, mean, sd)
    assert found == pytest.approx(wanted, abs=2e-5, rel=2e-3)


def test_the_gain_is_botorchs_analytic_one() -> None:
    """With the cost's variance going to 0, EHVI of two independent Gaussians is ours."""
    front = torch.tensor([[0.2, 0.9], [0.5, 0.5], [0.7, 0.2]], dtype=torch.float64)
    x_cost, mean, sd = 0.6, 0.45, 0.12
    model = GenericDeterministicModel(
        lambda X: torch.cat([torch.full_like(X, mean), torch.full_like(X, x_cost)], -1),
        num_outputs=2,
    )

    class Gaussian(ModelList):
        def posterior(self, X, **_):
            from botorch.posteriors import GPyTorchPosterior
            from gpytorch.distributions import MultitaskMultivariateNormal

            means = model.posterior(X).mean
            variance = torch.tensor([sd**2, 1e-9], dtype=torch.float64).expand(means.shape)
            covariance = torch.diag_embed(variance.reshape(*means.shape[:-2], -1))
            return GPyTorchPosterior(MultitaskMultivariateNormal(means, covariance))

    partitioning = NondominatedPartitioning(torch.zeros(2, dtype=torch.float64), front)
    reference = ExpectedHypervolumeImprovement(Gaussian(model), [0.0, 0.0], partitioning)
    with torch.no_grad():
        wanted = float(reference(torch.zeros(1, 1, 1, dtype=torch.float64)))
    cells = Cells.of(front[:, 1:].numpy(), front[:, :1].numpy())
    found = cells.gains(np.array([[x_cost]]), np.array([[mean]]), np.array([[sd]]))
    assert found == pytest.approx([wanted], rel=1e-4)


def test_members_on_no_front_cut_no_cells() -> None:
    rng = np.random.default_rng(0)
    costs, qualities = rng.random((40, 2)), rng.random((40, 3))
    few = Cells.of(costs, qualities)
    twice = Cells.of(np.repeat(costs, 2, axis=0), np.repeat(qualities, 2, axis=0))
    assert len(few.low) == len(twice.low) < 41**2
    at, mean, sd = rng.random((6, 2)), rng.random((6, 3)), np.full((6, 1), 0.1)
    assert few.gains(at, mean, sd) == pytest.approx(twice.gains(at, mean, sd), abs=1e-14)


def test_an_empty_front_gains_the_whole_box() -> None:
    cells = Cells.of(np.empty((0, 1)), np.empty((0, 2)))
    found = cells.gains(np.array([[0.5]]), np.full((1, 2), 0.4), np.array([[1e-6]]))
    assert found == pytest.approx([0.2])
    assert cells.gains(np.empty((0, 1)), np.empty((0, 2)), np.empty((0, 1))).shape == (0,)


def test_the_far_tail_stays_positive_and_ordered() -> None:
    tail = expected_improvement(np.array([0.0, 0.01, 0.02]), np.array([0.02]), 0.5)
    assert 0.0 < tail[0] < tail[1] < tail[2] < 1e-100


def test_below_a_floor_nothing_is_gained() -> None:
    """By sampling: only qualities above the floor count, with all that they gain."""
    costs, qualities = np.array([[0.9], [0.3]]), np.array([[0.3], [0.7]])
    mean, sd, at, floor = 0.5, 0.15, 0.6, 0.55
    draws = (np.arange(20000) + 0.5) / 20000
    values = mean + sd * np.sqrt(2) * torch.erfinv(torch.from_numpy(2 * draws - 1)).numpy()
    front = np.column_stack([qualities, costs])
    before = hypervolume(front)
    gains = [
        hypervolume(np.vstack([front, [min(value, 1.0), at]])) - before if value >= floor else 0.0
        for value in values[::20]
    ]
    found = Cells.of(costs, qualities).gains(
        np.array([[at]]), np.array([[mean]]), np.array([[sd]]), floor=floor
    )
    assert found == pytest.approx([np.mean(gains)], rel=5e-3)
