"""IST, RST and LISA: one round by hand, sizes and distribution of the layer sets."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.configuration import Configuration, Group
from autopeft.sparsity import rules
from autopeft.sparsity.acting import Acting, Subject
from autopeft.sparsity.ist import updated_scores
from autopeft.sparsity.sampling import weighted_subset

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


def _acting(rule: str, layers: list[int], *, n_layers: int = 32, seed: int = 0, **own: Any) -> Any:
    group = Group.of("lora", layers, ["query"], rank=2, alpha=4.0, dropout=0.0)
    configuration = Configuration.of([group], training=TRAINING, sparsity={"rule": rule, **own})

    def draws(purpose: str, step: int) -> np.random.Generator:
        return np.random.default_rng([seed, step, *purpose.encode()])

    subject = Subject(configuration, n_layers, 1000, draws, {}, {}, {})
    acting: Acting | None = rules[rule].acting(subject)
    assert acting is not None
    return acting


def _sets(n: int, positions: list[tuple[int, ...]]) -> torch.Tensor:
    return torch.tensor([[place in own for place in range(n)] for own in positions])


def _scheduled(acting: Any, step: int) -> list[int]:
    """The layers that train, whether they are said as numbers or as a mask."""
    layers = acting.schedule(step)
    return layers.nonzero().flatten().tolist() if isinstance(layers, torch.Tensor) else layers


def test_one_round_of_ist_is_the_hand_computed_one() -> None:
    """Losses 0.5, 1.0, 2.0: exp(-l) = 0.606531, 0.367879, 0.135335, of mean 0.369915."""
    scores = torch.tensor([0.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    losses = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found = updated_scores(scores, _sets(4, [(0, 1), (1, 2), (0, 2)]), losses, 10.0)
    # p (1 - p) is 0.25 at 0 and 0.196612 at +-1; centred rewards 0.236616, -0.002036, -0.234580
    expected = [
        10 * 0.25 * (0.236616 - 0.234580),
        1.0 + 10 * 0.196612 * (0.236616 - 0.002036),
        -1.0 + 10 * 0.196612 * (-0.002036 - 0.234580),
        0.0,
    ]
    assert found.tolist() == pytest.approx(expected, abs=2e-5)
    assert torch.equal(updated_scores(scores, _sets(4, [(0,)]), losses[:1] * np.nan, 10.0), scores)


def test_the_released_constants_on_32_layers() -> None:
    acting = _acting("ist", list(range(32)))
    assert all(len(_scheduled(acting, step)) == 8 for step in range(50))
    asked = [step for step in range(41) if acting.question(step) is not None]
    assert asked == [10, 20, 30, 40]
    question = acting.question(10)
    assert (question.examples, question.turn) == (16, 0)
    assert question.gains.shape == (3, 32)
    assert {tuple(sorted(Counter(row).items())) for row in question.gains.tolist()} == {
        ((0.25, 16), (1.0, 16))
    }
    assert len({tuple(row) for row in question.gains.tolist()}) == 3


def test_a_round_reaches_the_scores_through_the_question() -> None:
    acting = _acting("ist", [3, 5, 6, 9], n_layers=12)
    gains = acting.question(10).gains.numpy()
    losses = np.array([0.5, 1.0, 2.0])
    acting.score_losses(10, torch.from_numpy(losses))
    rewards = np.exp(-losses) - np.exp(-losses).mean()
    expected = [
        sum(2.5 * r for r, row in zip(rewards, gains, strict=True) if row[layer] == 0.25)
        for layer in (3, 5, 6, 9)
    ]
    assert acting.scores.tolist() == pytest.approx(expected)
    assert float(acting.scores.abs().max()) > 0.1
    assert set(np.flatnonzero((gains != 1).any(axis=0))) <= {3, 5, 6, 9}


def test_layers_are_those_of_the_configuration_and_at_least_one() -> None:
    for layers, kept in (([1], 1), ([0, 2, 5], 1), (list(range(9)), 2)):
        acting = _acting("rst", layers, n_layers=12)
        for step in range(20):
            chosen = acting.schedule(step)
            assert len(chosen) == kept
            assert set(chosen) <= set(layers)
    assert _acting("ist", [4], n_layers=12).question(10) is None, "one set teaches nothing"
    pair = _acting("ist", [4, 7], n_layers=12).question(10)
    assert pair.gains.shape == (2, 12), "two layers have but two different halves"


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (8.0, 4.0, 2.0, 1.0)])
def test_subsets_are_drawn_in_turn_without_replacement(weights: tuple[float, ...]) -> None:
    """Against the closed form of drawing two of four one after the other."""
    rng, draws = np.random.default_rng(0), 20000
    logs = np.log(np.array(weights))
    found = Counter(weighted_subset(logs, 2, rng.random(4)) for _ in range(draws))
    total = sum(weights)
    for pair in ((i, j) for i in range(4) for j in range(i + 1, 4)):
        i, j = weights[pair[0]], weights[pair[1]]
        expected = i / total * j / (total - i) + j / total * i / (total - j)
        error = 5 * (expected * (1 - expected) / draws) ** 0.5
        assert found[pair] / draws == pytest.approx(expected, abs=error)


def test_unimportant_layers_train_less_and_are_suppressed_more() -> None:
    acting = _acting("ist", [0, 1, 2, 3], n_layers=4, interval=1)
    acting.scores = torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    trained = Counter(layer for step in range(2000) for layer in _scheduled(acting, step))
    suppressed = Counter(
        layer
        for step in range(1, 300)
        for layer in np.flatnonzero(acting.question(step).gains[0].numpy() < 1).tolist()
    )
    p = 1 / (1 + np.exp(3.0))
    assert trained[0] / 2000 == pytest.approx(p / (p + 1.5), abs=0.02)
    assert suppressed[0] > 1.2 * max(suppressed[layer] for layer in (1, 2, 3))


def test_draws_depend_on_seed_and_step_alone() -> None:
    one, other = (_acting("rst", list(range(32))) for _ in range(2))
    assert [one.schedule(step) for step in range(9)] == [
        other.schedule(step) for step in reversed(range(9))
    ][::-1]
    assert one.schedule(3) != _acting("rst", list(range(32)), seed=1).schedule(3)


def test_ist_continues_from_its_state() -> None:
    acting = _acting("ist", list(range(8)))
    for step in (10, 20):
        acting.question(step)
        acting.score_losses(step, torch.tensor([0.1, 0.5, 0.9]))
    again = _acting("ist", list(range(8)))
    again.restore(acting.state())
    assert acting.state()["scores"].dtype == torch.float64
    assert torch.equal(again.scores, acting.scores)
    assert again.schedule(25).tolist() == acting.schedule(25).tolist()


def test_lisa_switches_every_interval() -> None:
    acting = _acting("lisa", list(range(12)), n_layers=12)
    sets = [tuple(acting.schedule(step)) for step in range(400)]
    assert {len(own) for own in sets} == {2}
    assert all(sets[step] == sets[step - step % 20] for step in range(400))
    changes = sum(sets[step] != sets[step - 20] for step in range(20, 400, 20))
    assert changes >= 15
    many = Counter(layer for step in range(0, 40000, 20) for layer in acting.schedule(step))
    assert min(many.values()) / max(many.values()) > 0.8
    assert len(_acting("lisa", [1], n_layers=12).schedule(0)) == 1
