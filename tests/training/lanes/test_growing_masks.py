"""ID3 on a lane: against a dense reference of its own, exact counts, what is masked stays."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from lane_training import STEPS, Training, task_of, without_cache
from torch import nn

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.methods.lane_operator import Call
from autopeft.sparsity.id3 import budget_of, unmasked_at
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.state import take_state

TRAINING = {"learning_rate": 3e-3, "weight_decay": 0.1, "warmup_ratio": 0.0}
Make = Callable[[int, Any], tuple[Batch, Mapping[int, torch.Tensor]]]


@pytest.fixture
def make(make_batch: Callable[..., Batch]) -> Make:
    """BERT's batches by step."""
    return without_cache(lambda step: make_batch("bert", seed=step))


def _lane(**sparsity: Any) -> Lane:
    adapter = {"activation": "relu", "scale": 1.0, "dropout": 0.0}
    groups = [
        Group.of("lora", [0, 2], ["query", "up"], rank=3, alpha=6.0, dropout=0.0),
        Group.of("serial_adapter", [1], ["ffn"], size=2, **adapter),
        Group.of("prefix", [2], length=2, reparametrise=True, hidden=4),
    ]
    return Lane(
        0, Configuration.of(groups, training=TRAINING, sparsity={"rule": "id3"} | sparsity)
    )


def _reference(training: Training, make: Make, exponent: float) -> dict[str, torch.Tensor]:
    """Every tensor by itself under torch's AdamW; masks by a full sort, restored by hand."""
    pack, budget_share, epsilon = training.pack, 0.4, 1e-3
    names = {item.name: item.parameter for item in pack.stacked()}
    views = pack.lane_views(names, 0)
    own = {name: nn.Parameter(view.detach().clone()) for name, view in views.items()}
    grads = pack.lane_views({n: p.grad for n, p in names.items()}, 0)  # type: ignore[misc]
    masked = {n: torch.ones(t.shape, dtype=torch.bool) for n, t in own.items()
              if not n.startswith(("head.", "prefix."))}  # fmt: skip
    scalars = sum(mask.numel() for mask in masked.values())
    budget = round(budget_share * scalars)
    optimizers = {
        n: torch.optim.AdamW([t], lr=3e-3, weight_decay=0.1 if t.dim() > 1 else 0.0)
        for n, t in own.items()
    }
    loss = task_of(training._backbone).loss_sums
    for step in range(STEPS):
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(own[name])
        for parameter in names.values():
            parameter.grad.zero_()  # type: ignore[union-attr]
        batch, _ = make(step, pack)
        with pack.running():
            outputs = pack(batch, Call(True, lambda name, shape: torch.ones(shape)))
        (loss(outputs, batch) / len(batch)).sum().backward()
        scored = [
            (float(grads[n].flatten()[i].abs()
                   / (epsilon + own[n].detach().flatten()[i].abs()) ** exponent), n, i)
            for n, mask in masked.items() for i in mask.flatten().nonzero().flatten().tolist()
        ]  # fmt: skip
        scored.sort(key=lambda item: -item[0])
        wanted = budget // STEPS + (1 if step < budget % STEPS else 0)
        for _, name, index in scored[:wanted]:
            masked[name].view(-1)[index] = False
        for name, tensor in own.items():
            tensor.grad = grads[name].clone()
            if name in masked:
                tensor.grad[masked[name]] = 0.0
        nn.utils.clip_grad_norm_(list(own.values()), 1.0)
        for name, tensor in own.items():
            kept = tensor.detach().clone()
            optimizers[name].param_groups[0]["lr"] = 3e-3 * (1.0 - step / STEPS)
            optimizers[name].step()
            if name in masked:
                with torch.no_grad():
                    tensor[masked[name]] = kept[masked[name]]
    return {name: tensor.detach() for name, tensor in own.items()}


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_id3_is_a_dense_reference(
    exponent: float, make_backbone: Callable[..., Backbone], make: Make
) -> None:
    backbone = make_backbone("bert")
    lane = _lane(budget=0.4, exponent=exponent)
    expected = _reference(Training(backbone, [lane]), make, exponent)
    found = Training(backbone, [lane]).run(make)[0].weights()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-9, rtol=0), name


@pytest.mark.parametrize("rule", ["id3", "id3_random"])
def test_the_mask_grows_by_exact_counts_and_nothing_else_moves(
    rule: str, make_backbone: Callable[..., Backbone], make: Make
) -> None:
    backbone, lane = make_backbone("bert"), _lane(rule=rule, budget=0.37)
    training = Training(backbone, [lane])
    start = take_state(training.pack, training.optimizer, 0, training.rules)[0]
    masked = sorted(n for n in start.weights() if not n.startswith(("head.", "prefix.")))
    sizes = [start.weights()[name].numel() for name in masked]
    budget = budget_of(sum(sizes), 0.37)
    before = torch.zeros(sum(sizes), dtype=torch.uint8)
    for step in range(STEPS):
        state = training.run(make, step, step + 1)[0]
        now = state.tensors["rule/unmasked"]
        assert int(now.sum() - before.sum()) == unmasked_at(step, budget, STEPS)
        assert bool((now >= before).all())
        for name, own in zip(masked, now.split(sizes), strict=True):
            still = own.view_as(state.weights()[name]) == 0
            for kind in ("weight", "first", "second"):
                tensor, initial = (s.tensors[f"{kind}/{name}"] for s in (state, start))
                assert torch.equal(tensor[still], initial[still]), (step, kind, name)
        before = now
    assert int(before.sum()) == budget
    whole = sum(t.numel() for n, t in start.weights().items() if n.startswith("prefix."))
    anatomy = backbone.anatomy
    per_site = counting.site_params(lane.configuration, anatomy)
    folded = per_site[2, "prefix"]
    assert folded == 2 * 2 * 32, "a re-parametrised prefix is kept whole"
    plain = replace(lane.configuration, sparsity=(("rule", "none"),))
    stored = counting.trainable_params(lane.configuration, anatomy)
    assert stored == counting.trainable_params(plain, anatomy), "masked is not zero: all stays"
    assert counting.training_params(lane.configuration, anatomy) == sum(sizes) + whole


def test_the_control_draws_its_scalars_whatever_their_gradients(
    make_backbone: Callable[..., Backbone], make: Make, make_batch: Callable[..., Batch]
) -> None:
    backbone, lane = make_backbone("bert"), _lane(rule="id3_random", budget=0.4)

    def mask(training: Training, own: Make) -> torch.Tensor:
        return training.run(own)[0].tensors["rule/unmasked"].bool()

    found = mask(Training(backbone, [lane]), make)
    elsewhere = without_cache(lambda step: make_batch("bert", seed=900 + step))
    assert torch.equal(mask(Training(backbone, [lane]), elsewhere), found), "other data"
    other = mask(Training(backbone, [lane], seed=8), make)
    assert int(other.sum()) == int(found.sum())
    overlap = float((other & found).sum() / found.sum())
    assert overlap == pytest.approx(0.4, abs=0.1), "two draws of 40 % share as much by chance"
    learnt = mask(Training(backbone, [_lane(budget=0.4)]), make)
    assert not torch.equal(learnt, found)


@pytest.mark.parametrize("total_steps", [1, 7, 20, 1000])
def test_increments_sum_to_the_budget(total_steps: int) -> None:
    for budget in (0, 1, 6, 21, 12345):
        each = [unmasked_at(step, budget, total_steps) for step in range(total_steps)]
        assert sum(each) == budget
        assert max(each) - min(each) <= 1
        assert each == sorted(each, reverse=True)
