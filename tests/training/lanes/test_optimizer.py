"""LaneAdamW against torch's AdamW, clip and transformers' schedules, lane by lane."""

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from autopeft.training.lanes.optimizer import LaneAdamW, Stacked, schedule

LANES, STEPS = 3, 25
FACTORS = schedule("linear", total=STEPS, warmup_steps=[0, 3, 5], device=torch.device("cpu"))
RATES, DECAYS = [1e-3, 5e-3, 2e-2], [0.0, 0.1, 0.01]


def _stacked() -> list[Stacked]:
    """A matrix of lanes 0 and 2, a matrix of all, and a bias of all."""
    generator = torch.Generator().manual_seed(0)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

    return [
        Stacked("some", parameter(2, 4, 3), (0, 2), True),
        Stacked("all", parameter(LANES, 5, 2), (0, 1, 2), True, rates=(1.0, 3.0, 0.25)),
        Stacked("bias", parameter(LANES, 4), (0, 1, 2), False),
    ]


def _gradient(name: str, shape: torch.Size, step: int) -> torch.Tensor:
    seed = 1000 * step + sum(map(ord, name))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _optimizer(stacked: list[Stacked], max_norm: float | None = 1.0) -> LaneAdamW:
    return LaneAdamW(
        stacked, LANES, learning_rates=RATES, weight_decays=DECAYS, max_grad_norm=max_norm
    )


def _run(stacked: list[Stacked], optimizer: LaneAdamW, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        for item in stacked:
            assert item.parameter.grad is not None
            item.parameter.grad.copy_(_gradient(item.name, item.parameter.shape, step))
        optimizer.step(FACTORS[step])


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_each_lane_is_torchs_adamw(max_norm: float | None) -> None:
    stacked = _stacked()
    starts = {item.name: item.parameter.detach().clone() for item in stacked}
    optimizer = _optimizer(stacked, max_norm)
    _run(stacked, optimizer, range(STEPS))
    for lane in range(LANES):
        own = [(item, item.members.index(lane)) for item in stacked if lane in item.members]
        weights = [nn.Parameter(starts[item.name][index].clone()) for item, index in own]
        groups = [
            {
                "params": [w],
                "weight_decay": DECAYS[lane] if item.decays else 0.0,
                "lr": RATES[lane] * (item.rates[index] if item.rates else 1.0),
            }
            for w, (item, index) in zip(weights, own, strict=True)
        ]
        reference = torch.optim.AdamW(groups, lr=RATES[lane])
        rates = get_scheduler("linear", reference, [0, 3, 5][lane], STEPS)
        for step in range(STEPS):
            for weight, (item, index) in zip(weights, own, strict=True):
                weight.grad = _gradient(item.name, item.parameter.shape, step)[index].clone()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(weights, max_norm)
            reference.step()
            rates.step()
        for weight, (item, index) in zip(weights, own, strict=True):
            assert torch.allclose(weight, item.parameter[index], atol=1e-12), (lane, item.name)


def test_an_inactive_lane_stays_bit_for_bit() -> None:
    stacked = _stacked()
    optimizer = _optimizer(stacked)
    _run(stacked, optimizer, range(5))
    kept = {item.name: item.parameter.detach().clone() for item in stacked}
    moments = optimizer.first_moment.clone(), optimizer.second_moment.clone()
    optimizer.active[1] = False
    _run(stacked, optimizer, range(5, 10))
    assert optimizer.steps.tolist() == [10, 5, 10]
    for item in stacked:
        for index, lane in enumerate(item.members):
            same = torch.equal(item.parameter[index], kept[item.name][index])
            assert same == (lane == 1), (item.name, lane)
    for moment, before in zip(
        (optimizer.first_moment, optimizer.second_moment), moments, strict=True
    ):
        now, then = optimizer.view(moment, "all"), optimizer.view(before, "all")
        assert torch.equal(now[1], then[1])
        assert not torch.equal(now[0], then[0])


def test_a_lane_goes_on_as_if_it_had_never_been_inactive() -> None:
    """The same gradients and factors once more, behind some steps without it."""
    paused, straight = _stacked(), _stacked()
    optimizer, other = _optimizer(paused), _optimizer(straight)
    _run(straight, other, range(8))
    _run(paused, optimizer, range(5))
    optimizer.active[1] = False
    _run(paused, optimizer, range(20, 23))
    optimizer.active[1] = True
    _run(paused, optimizer, range(5, 8))
    assert optimizer.steps.tolist() == [11, 8, 11]
    for item, expected in zip(paused, straight, strict=True):
        for index, lane in enumerate(item.members):
            same = torch.equal(item.parameter[index], expected.parameter[index])
            assert same == (lane == 1), (item.name, lane)


def test_a_gradient_that_is_not_finite_freezes_its_lane_alone() -> None:
    stacked = _stacked()
    optimizer = _optimizer(stacked)
    optimizer.zero_grad()
    for item in stacked:
        assert item.parameter.grad is not None
        item.parameter.grad.fill_(0.5)
    stacked[1].parameter.grad[2, 0, 0] = float("inf")  # type: ignore[index]
    before = stacked[1].parameter.detach().clone()
    optimizer.step(torch.ones(LANES))
    assert optimizer.active.tolist() == [True, True, False]
    assert torch.equal(stacked[1].parameter[2], before[2])
    assert not torch.equal(stacked[1].parameter[0], before[0])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_are_transformers(name: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = get_scheduler(name, optimizer, 4, STEPS)
    found = schedule(name, total=STEPS, warmup_steps=[4], device=torch.device("cpu"))
    for step in range(STEPS):
        assert float(found[step, 0]) == pytest.approx(expected.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        expected.step()
