import numpy as np
import pytest
import torch
from botorch.acquisition.multi_objective import qNoisyExpectedHypervolumeImprovement
from botorch.sampling.list_sampler import ListSampler
from botorch.sampling.normal import IIDNormalSampler

from autopeft.searchers.bo import ModelList
from autopeft.searchers.dominance import hypervolume
from autopeft.searchers.reference.acquisition import NoisyImprovement, _Cells, _Staircase
from autopeft.searchers.reference.numerics import numerics
from autopeft.searchers.reference.saas import SaasGP

REFERENCE = [-1.0, -1.0]


def models(m=2, n=12, d=3, S=2):
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.random((n, d)))
    outputs = [torch.sin(4.0 * X[:, 0]), torch.cos(3.0 * X[:, 0]) + X[:, 1], X[:, 2]][:m]
    drawn = [rng.normal(0.0, 0.3, (S, d + 4)) - np.eye(d + 4)[2] * 4.0 for _ in outputs]
    return X, [SaasGP(X, y, q, mixture=True) for y, q in zip(outputs, drawn, strict=True)]


@pytest.mark.parametrize("pending", [0, 2])
def test_it_is_botorchs(pending: int) -> None:
    """Both are Monte-Carlo: theirs has 2 draws of 4096 samples, and errors of a few per cent."""
    X, surrogates = models()
    at = torch.rand(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    waiting, candidates = at[:pending], at[2:]
    with numerics(0), torch.no_grad():
        ours = NoisyImprovement(surrogates, REFERENCE, X, waiting, samples=1024, seed=0)
        model = ModelList(*surrogates)
        theirs = qNoisyExpectedHypervolumeImprovement(
            model,
            REFERENCE,
            torch.cat([X, waiting]),
            sampler=ListSampler(
                *(IIDNormalSampler(torch.Size([4096]), seed=seed) for seed in (1, 2))
            ),
            prune_baseline=False,
            cache_root=False,
        )
        expected = theirs(candidates.unsqueeze(1))
        found = ours.score(candidates)
    assert expected.max() > 0.02
    assert found.tolist() == pytest.approx(expected.tolist(), rel=0.12, abs=0.004)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_gains_are_differences_of_exact_hypervolumes(m: int) -> None:
    rng = np.random.default_rng(m)
    taken, points = rng.normal(0.3, 0.5, (2, 3, 5, m)), rng.normal(0.6, 0.5, (2, 3, 4, m))
    make = _Staircase if m == 2 else _Cells
    gains = make(torch.from_numpy(taken), torch.zeros(m, dtype=torch.float64)).gains(
        torch.from_numpy(points)
    )
    for place in np.ndindex(2, 3):
        before = hypervolume(taken[place])
        expected = [hypervolume(np.vstack([taken[place], p])) - before for p in points[place]]
        assert gains[place].tolist() == pytest.approx(expected, abs=1e-10)
    assert gains.max() > 0.0


def test_a_chosen_point_gains_no_more() -> None:
    X, surrogates = models()
    at = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with numerics(0), torch.no_grad():
        acquisition = NoisyImprovement(surrogates, REFERENCE, X, X[:0], samples=64, seed=0)
        before = acquisition.score(at)
        best = int(before.argmax())
        acquisition.choose(at[best])
        after = acquisition.score(at)
    assert after[best] < 0.01 * before[best]
    assert (after <= before * 1.3 + 1e-3).all()


@pytest.mark.parametrize("m", [1, 3])
def test_other_numbers_of_objectives(m: int) -> None:
    X, surrogates = models(m)
    with numerics(0), torch.no_grad():
        acquisition = NoisyImprovement(surrogates, [-1.0] * m, X, X[:0], samples=16, seed=0)
        gains = acquisition.score(torch.rand(4, 3, dtype=torch.float64))
    assert gains.isfinite().all()
    assert gains.min() >= 0.0
