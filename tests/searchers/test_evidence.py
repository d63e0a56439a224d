"""What a rung's measurements are worth, against closed forms and simulated noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.searchers.evidence import MOST_MOVED, RungValues, isotonic, readings, sharpened


def simulated(
    n: int, n_examples: int, *, missed: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True shares, measured shares, and losses that tell the truth but for `missed`."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.3, 0.9, n)
    losses = 2.0 - 1.5 * (truth + rng.normal(0.0, missed, n)) ** 2
    return truth, rng.binomial(n_examples, truth) / n_examples, losses


def min_max(values: np.ndarray) -> list[float]:
    """Isotonic regression in closed form: the least upper mean of the greatest lower means."""
    n = len(values)
    return [
        max(min(values[a : b + 1].mean() for b in range(i, n)) for a in range(i + 1))
        for i in range(n)
    ]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]), min_size=1, max_size=12),
    data=st.data(),
)
def test_isotonic_goes_through_the_centres_of_the_closed_form(
    values: list[float], data: st.DataObject
) -> None:
    along = np.array(data.draw(st.permutations(range(len(values)))), dtype=float)
    order = np.argsort(along)
    expected = np.round(min_max(np.array(values)[order]), 9)
    found, blocks = isotonic(np.array(values), along)
    levels = np.unique(expected)
    assert blocks == len(levels)
    centres = [float(np.flatnonzero(expected == level).mean()) for level in levels]
    assert found[order] == pytest.approx(
        np.interp(np.arange(len(values)), centres, levels), abs=1e-8
    )


def test_losses_sharpen_what_few_examples_blur() -> None:
    truth, shares, losses = simulated(60, 50, missed=0.0, seed=0)
    found = sharpened(shares, losses, 50)
    error = np.sqrt(np.mean((found.values - truth) ** 2))
    assert error < 0.6 * np.sqrt(np.mean((shares - truth) ** 2))


def test_losses_that_mislead_are_not_believed() -> None:
    truth, shares, losses = simulated(60, 1000, missed=0.2, seed=1)
    found = sharpened(shares, losses, 1000)
    error = np.sqrt(np.mean((found.values - truth) ** 2))
    assert error < 1.1 * np.sqrt(np.mean((shares - truth) ** 2))


def test_one_trial_whose_loss_misleads_keeps_its_quality() -> None:
    _, shares, losses = simulated(40, 500, missed=0.0, seed=2)
    best = int(np.argmax(shares))
    losses[best] = 10.0
    deviation = math.sqrt(shares[best] * (1 - shares[best]) / 500)
    values = sharpened(shares, losses, 500).values
    assert values[best] > shares[best] - 3.0 * MOST_MOVED * deviation
    assert np.sum(values > values[best]) < 8


@pytest.mark.parametrize("n_examples", [50, 500])
def test_the_noise_covers_the_error_and_shrinks_with_trials_and_examples(n_examples: int) -> None:
    noises = {}
    for n in (8, 200):
        errors, claimed = [], []
        for seed in range(30):
            truth, shares, losses = simulated(n, n_examples, missed=0.0, seed=seed)
            found = sharpened(shares, losses, n_examples)
            errors.append(float(np.mean((found.values - truth) ** 2)))
            claimed.append(found.noise)
        noises[n] = float(np.mean(claimed))
        assert noises[n] > 0.6 * math.sqrt(np.mean(errors))
        assert noises[n] < math.sqrt(0.25 / n_examples)
    assert noises[200] < noises[8]


def test_without_losses_the_noise_is_binomial() -> None:
    shares = np.array([0.5, 0.5])
    found = sharpened(shares, np.full(2, np.nan), 100)
    assert np.array_equal(found.values, shares)
    assert found.noise == pytest.approx(0.05, rel=0.03)


def test_where_every_share_is_the_same_the_loss_ranks() -> None:
    shares, losses = np.full(9, 0.232), np.linspace(1.8, 1.6, 9)
    found = sharpened(shares, losses, 500)
    assert np.all(np.diff(found.values) > 0)
    assert np.ptp(found.values) < 1e-6 < found.noise


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.01, 0.05]))
def test_the_scatter_between_rungs_tells_the_noise_of_a_loss(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 2.0, 150)
    here = truth + rng.normal(0, noise, 150)
    there = 0.5 * truth + rng.normal(0, noise / 2, 150)
    values = RungValues(-here, here, -there, there, None)
    (only,) = readings(values)
    assert np.array_equal(only.values, -here)
    assert 0.6 * noise < only.noise < 1.6 * noise


def test_too_few_trials_at_both_rungs_tell_no_noise() -> None:
    losses = np.linspace(1.0, 2.0, 12)
    beside = np.where(np.arange(12) < 3, losses, np.nan)
    (only,) = readings(RungValues(-losses, losses, -beside, beside, None))
    assert only.noise is None


def test_rungs_that_agree_leave_little_noise_however_few_the_trials() -> None:
    losses = np.array([1.0, 1.1, 1.3, 1.6, 1.7, 2.0, 2.4])
    beside = losses**1.5 / 2.0
    (only,) = readings(RungValues(-losses, losses, -beside, beside, None))
    assert only.noise < 0.02
    crossed = beside[[1, 3, 0, 5, 2, 6, 4]]
    (other,) = readings(RungValues(-losses, losses, -crossed, crossed, None))
    assert other.noise > 0.15


def test_another_metric_is_read_as_it_is_and_its_loss_beside_it() -> None:
    rng = np.random.default_rng(0)
    quality, loss = rng.random(40), rng.random(40)
    beside = quality + rng.normal(0, 0.02, 40)
    first, second = readings(RungValues(quality, loss, beside, loss + 0.1, None))
    assert np.array_equal(first.values, quality)
    assert 0.005 < first.noise < 0.04
    assert np.array_equal(second.values, -loss)
