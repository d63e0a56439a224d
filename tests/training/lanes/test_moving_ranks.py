"""Rank reallocation on a lane: scores by hand, exact ranks, what is stored."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lane_training import STEPS, Training, without_cache

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.methods.lane_operator import Call
from autopeft.sparsity import rules
from autopeft.sparsity.acting import Subject
from autopeft.sparsity.adalora import MovingRanks, RandomRanks, budget_at, kept_ranks
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

TRAINING = {"learning_rate": 3e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


def _configuration(groups: list[Group], **sparsity: Any) -> Configuration:
    return Configuration.of(groups, training=TRAINING, sparsity={"rule": "adalora"} | sparsity)


def _lora(layers: list[int], sites: list[str], rank: int) -> Group:
    return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=0.0)


def _alone(a: list[list[float]], b: list[list[float]], **settings: float) -> MovingRanks:
    weights = {"lora.0.query.A": torch.tensor(a), "lora.0.query.B": torch.tensor(b)}
    gradients = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    frozen = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in weights.items()}
    subject = Subject(
        _configuration([_lora([0], ["query"], 2)]), 3, 10, _no_draws, weights, gradients, frozen
    )
    values = {"target": 0.5, "warmup": 0.2, "final": 0.4, "interval": 2.0} | settings
    return MovingRanks(subject, values)


def _no_draws(purpose: str, step: int) -> Any:
    raise AssertionError("it draws nothing")


def test_scores_are_the_hand_computed_ones() -> None:
    """Two steps on a 2 x 2 matrix of rank 2: I = 0.2 and 0.6 for A's first element, and so on."""
    acting = _alone([[1.0, 2.0], [3.0, -1.0]], [[2.0, 0.0], [1.0, 1.0]])
    a, b = (acting._subject.gradients[f"lora.0.query.{name}"] for name in "AB")
    a.copy_(torch.tensor([[0.2, -0.1], [0.0, 0.4]]))
    b.copy_(torch.tensor([[0.1, 5.0], [-0.3, 0.0]]))
    acting.score_gradients(0)
    a.copy_(torch.tensor([[-0.6, 0.1], [0.1, 0.0]]))
    b.copy_(torch.tensor([[0.2, 7.0], [0.3, 1.0]]))
    acting.score_gradients(1)

    def score(first: float, second: float) -> float:
        mean = 0.15 * first
        spread = 0.15 * abs(first - mean)
        mean = 0.85 * mean + 0.15 * second
        return mean * (0.85 * spread + 0.15 * abs(second - mean))

    found = acting.triplet_scores()["lora.0.query"]
    first = (score(0.2, 0.6) + score(0.0, 0.3)) / 2 + (score(0.2, 0.4) + score(0.0, 0.0)) / 2
    other = (score(0.2, 0.2) + score(0.4, 0.0)) / 2 + (score(0.3, 0.3) + score(0.0, 1.0)) / 2
    assert found.tolist() == pytest.approx([first, other], rel=1e-5)


def test_dropped_rows_come_back_until_the_end_fixes_them() -> None:
    acting = _alone([[1.0, 1.0]], [[1.0], [1.0]])
    weights, gradients = acting._subject.weights, acting._subject.gradients
    b, grad = weights["lora.0.query.B"], gradients["lora.0.query.B"]
    frozen = acting._subject.frozen

    def step(number: int, gradient: list[float], moved: list[float] | None = None) -> list[float]:
        grad.copy_(torch.tensor(gradient).unsqueeze(1))
        acting.score_gradients(number)
        if moved is not None:
            b.copy_(torch.tensor(moved).unsqueeze(1))
        acting.apply(number)
        return [float(value) for value in b.flatten()]

    assert step(0, [1.0, 2.0]) == [1.0, 1.0]
    assert step(1, [1.0, 2.0]) == [1.0, 1.0], "warm-up: two of ten steps"
    assert step(2, [1.0, 2.0]) == [1.0, 1.0], "no interval's end"
    assert step(3, [1.0, 2.0]) == [0.0, 1.0], "half of the way: 1 + round((1/2)^3) ranks"
    assert step(4, [9.0, 0.0], [0.5, 1.0]) == [0.5, 1.0]
    assert step(5, [90.0, 0.0]) == [0.5, 0.0], "the first one came back, for good"
    assert frozen["lora.0.query.B"].flatten().tolist() == [False, True]
    assert frozen["lora.0.query.A"].flatten().tolist() == [False, True]
    assert step(7, [0.0, 90.0]) == [0.5, 0.0]
    again = _alone([[1.0, 1.0]], [[1.0], [1.0]])
    again.restore(acting.state())
    assert again._subject.frozen["lora.0.query.A"].flatten().tolist() == [False, True]


def test_the_budget_is_cubic() -> None:
    found = [budget_at(done, 20, 4, begins=2, ends=10) for done in range(13)]
    expected = [20, 20, 20, *(4 + round(16 * (1 - k / 8) ** 3) for k in range(1, 8)), 4, 4, 4]
    assert found == expected
    assert budget_at(5, 20, 4, begins=5, ends=5) == 20
    assert budget_at(6, 20, 4, begins=5, ends=5) == 4


def test_classes_keep_their_shares() -> None:
    matrices = {"a": (4, 64), "b": (5, 64), "c": (3, 80)}
    assert kept_ranks(matrices, 0.5) == {64: 5, 80: 2}
    assert kept_ranks(matrices, 0.01) == {64: 1, 80: 0}
    assert kept_ranks(matrices, 1.0) == {64: 9, 80: 3}


def test_the_control_drops_ranks_by_chance_and_for_good() -> None:
    """As many as AdaLoRA does at a step, whatever the gradients; which, the seed says."""
    weights = {"lora.0.query.A": torch.ones(4, 12), "lora.0.query.B": torch.ones(12, 4)}
    kept = []
    for seed in (0, 0, 1):
        own = {name: tensor.clone() for name, tensor in weights.items()}
        gradients = {name: torch.randn_like(tensor) for name, tensor in own.items()}
        frozen = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in own.items()}
        rule = _configuration([_lora([0], ["query"], 12)], rule="adalora_random")
        subject = Subject(
            rule, 3, 20, lambda purpose, step, seed=seed: np.random.default_rng([seed, step]),
            own, gradients, frozen,
        )  # fmt: skip
        values = {"target": 0.25, "warmup": 0.1, "final": 0.4, "interval": 2.0}
        acting, before = RandomRanks(subject, values), torch.ones(12, dtype=torch.bool)
        for step in range(20):
            acting.score_gradients(step)
            acting.apply(step)
            now = own["lora.0.query.B"].ne(0).all(dim=1)
            assert bool((now <= before).all()), "none comes back"
            if step >= 3 and step % 2:
                assert int(now.sum()) == budget_at(step + 1, 12, 3, begins=2, ends=12)
            before = now
        assert torch.equal(frozen["lora.0.query.B"][:, 0], ~before)
        kept.append(before.tolist())
    assert kept[0] == kept[1] != kept[2]
    assert sum(kept[0]) == sum(kept[2]) == 3


@pytest.mark.parametrize("rule", ["adalora", "adalora_random"])
@pytest.mark.parametrize("target", [0.02, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.4])
def test_what_is_stored_has_the_counted_size_and_predicts_the_same(
    rule: str,
    target: float,
    final: float,
    make_backbone: Callable[..., Backbone],
    make_batch: Callable[..., Batch],
) -> None:
    backbone = make_backbone("bert")
    groups = [
        _lora([0, 2], ["query", "up", "down"], 3),
        _lora([1], ["value"], 5),
        Group.of("prefix", [1], length=2, reparametrise=False),
    ]
    own = {"rule": rule, "target": target, "final": final}
    configuration = _configuration(groups, **own, interval=3, warmup=0.1)
    training = Training(backbone, [Lane(0, configuration)])
    weights = training.run(without_cache(lambda step: make_batch("bert", seed=step)))[0].weights()
    stored, kept = rules.of(configuration).stored(configuration, weights)
    size = sum(tensor.numel() for name, tensor in kept.items() if not name.startswith("head."))
    assert size == counting.trainable_params(configuration, backbone.anatomy)
    assert size == counting.trainable_params(stored, backbone.anatomy)
    assert rules.of(configuration).stored(configuration, kept)[0] == stored
    assert STEPS == 20
    outputs = []
    for each, tensors in ((configuration, weights), (stored, kept)):
        lane = Lane(0, each)
        pack = Pack(backbone, backbone.head(3), [lane], seeds=Seeds(0), dtype=torch.float64)
        views = pack.lane_views(pack.parameters_by_name(), 0)
        assert views.keys() == tensors.keys()
        with torch.no_grad(), pack.running():
            for name, view in views.items():
                view.copy_(tensors[name])
            outputs.append(pack(make_batch("bert", seed=99), Call(False, _no_draws)))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-12)
