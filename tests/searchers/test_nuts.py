import numpy as np
import pytest

from autopeft.searchers.nuts import Nuts

MEAN = np.array([1.0, -2.0, 0.0])
COVARIANCE = np.array([[4.0, 1.8, 0.0], [1.8, 1.0, 0.0], [0.0, 0.0, 0.01]])


def normal(q):
    away = np.linalg.solve(COVARIANCE, q - MEAN)
    return -0.5 * float((q - MEAN) @ away), -away


def log_gamma(q):
    """Of the logarithm of a Gamma(3, 2): mean digamma(3) - log 2, variance trigamma(3)."""
    return float(3.0 * q[0] - 2.0 * np.exp(q[0])), np.array([3.0 - 2.0 * np.exp(q[0])])


def draw(density, d, seed=0, warmup=200, samples=1500, settle=False):
    chain = Nuts(density, d, max_depth=6, rng=np.random.default_rng(seed))
    if settle:
        chain.settle()
    return chain.draw(warmup, samples)


@pytest.mark.parametrize("settle", [False, True])
def test_a_correlated_normal_is_drawn(settle: bool) -> None:
    """Scales differ 20-fold; one standard error of a mean is about 0.03 deviations."""
    drawn = draw(normal, 3, settle=settle)
    deviations = np.sqrt(np.diag(COVARIANCE))
    assert np.abs((drawn.mean(0) - MEAN) / deviations).max() < 0.15
    found = np.cov(drawn, rowvar=False) / np.outer(deviations, deviations)
    assert np.abs(found - COVARIANCE / np.outer(deviations, deviations)).max() < 0.2


def test_a_skewed_density_is_drawn() -> None:
    drawn = draw(log_gamma, 1)[:, 0]
    assert drawn.mean() == pytest.approx(0.9227843 - np.log(2.0), abs=0.06)
    assert drawn.var() == pytest.approx(0.3949341, rel=0.2)


def test_settling_saves_gradients() -> None:
    """Where scales differ a thousandfold, trajectories are short from the start."""
    scales = np.array([1.0, 1e-3])
    counts = {}
    for settle in (False, True):
        count = [0]

        def stretched(q, count=count):
            count[0] += 1
            return -0.5 * float(((q / scales) ** 2).sum()), -q / scales**2

        draw(stretched, 2, warmup=20, samples=0, settle=settle)
        counts[settle] = count[0]
    assert counts[True] < 0.6 * counts[False]


def test_the_seed_decides() -> None:
    assert np.array_equal(draw(normal, 3, 1, 20, 5), draw(normal, 3, 1, 20, 5))
    assert not np.array_equal(draw(normal, 3, 1, 20, 5), draw(normal, 3, 2, 20, 5))


def test_a_wall_is_not_crossed() -> None:
    """Impossible places end a trajectory: an exponential density with a wall at 0."""

    def walled(q):
        return (-q[0], np.array([-1.0])) if q[0] > 0 else (-np.inf, np.array([np.nan]))

    drawn = draw(walled, 1, samples=400)
    assert drawn.min() > 0.0
    assert drawn.mean() == pytest.approx(1.0, abs=0.35)


def test_nowhere_to_start() -> None:
    with pytest.raises(ValueError, match="no possible place"):
        draw(lambda q: (-np.inf, np.zeros(2)), 2)
