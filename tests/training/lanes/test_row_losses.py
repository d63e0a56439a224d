"""Losses that operators hang on their outputs: a penalty put into LoRA's operator by the test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import tiny_backbones as tiny
import torch
from lane_training import Training, furthest, without_cache
from torch import Tensor
from torch.nn import functional

from autopeft.configuration import Configuration, Group
from autopeft.methods.lane_operator import Call
from autopeft.methods.lora import LoraOperator
from autopeft.methods.row_losses import real_tokens, with_row_losses
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.seeds import Seeds, StepUniform

STEPS = 6
PENALISED = 3
"""The rank whose lanes get a penalty; rank 4 is of the same stack and gets none."""


class Replayed:
    """Runs again what it is given, on the buffers it was given it with."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """`run` itself."""
        return run


def _lane(number: int, rank: int, layers: tuple[int, ...] = (1, 2)) -> Lane:
    group = Group.of("lora", layers, ["value", "up"], rank=rank, alpha=8.0, dropout=0.1)
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    return Lane(number, Configuration.of([group], training=training))


def _row_losses(delta: Tensor, mask: Tensor) -> Tensor:
    """Per row, the mean of the real tokens' |delta + 1|^2: [k, B, T, d], [B, T] -> [k, B]."""
    tokens = (delta + 1.0).square().sum(3) * mask
    return tokens.sum(2) / mask.sum(1)


@contextmanager
def _penalty(on_delta: Callable[[LoraOperator, Tensor, Call], Tensor]) -> Iterator[None]:
    plain = LoraOperator.delta

    def delta(self: LoraOperator, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return on_delta(self, plain(self, x, y, call), call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoraOperator, "delta", delta)
        yield


def _hung(operator: LoraOperator, delta: Tensor, call: Call) -> Tensor:
    if call.row_share is None:
        return delta
    ranks = [shape[1] for shape in operator.own_shapes["A"]]
    counts = torch.tensor([float(rank == PENALISED) for rank in ranks]).unsqueeze(1)
    mask = real_tokens(call, delta.shape[2])
    return with_row_losses(delta, counts * _row_losses(delta, mask), call)


def _gradients(training: Training) -> dict[str, Tensor]:
    return {item.name: item.parameter.grad.clone() for item in training.pack.stacked()}


def _accumulated(
    cuts: tuple[int, ...] = (0, 4), *, checkpointing: bool = False
) -> dict[str, Tensor]:
    """Gradients of one step of 4 rows, cut into micro-batches."""
    backbone, seeds = tiny.tiny_backbone("bert"), Seeds(7)
    training = Training(backbone, [_lane(0, PENALISED), _lane(1, 4)], checkpointing=checkpointing)
    whole = tiny.tiny_batch("bert", rows=4, seed=1)
    with _penalty(_hung), training.pack.running():
        training.optimizer.zero_grad()
        for start, stop in pairwise(cuts):
            inputs = {name: tensor[start:stop] for name, tensor in whole.inputs.items()}
            part = type(whole)(inputs, whole.mask[start:stop], whole.labels[start:stop])
            draws = StepUniform(seeds, 0, start, 4, training.pack.device)
            training.steps.accumulate(part, {}, draws, weight=4)
    return _gradients(training)


def _expected() -> dict[str, Tensor]:
    """The same by autograd alone: task loss plus penalties that a list has collected."""
    backbone, batch = tiny.tiny_backbone("bert"), tiny.tiny_batch("bert", rows=4, seed=1)
    training = Training(backbone, [_lane(0, PENALISED), _lane(1, 4)])
    deltas: list[Tensor] = []

    def collect(operator: LoraOperator, delta: Tensor, call: Call) -> Tensor:
        # of the last layer, bert reads the first token alone, and of all others keys and values:
        # the value of the first token is made twice, and read once
        if not (operator.name == "lora.2.value" and delta.shape[2] == 1):
            deltas.append(delta)
        return delta

    draws = StepUniform(Seeds(7), 0, 0, 4, training.pack.device)
    with _penalty(collect), training.pack.running():
        logits = training.pack(batch, Call(True, draws))
    loss = sum(functional.cross_entropy(own, batch.labels) for own in logits)
    assert sorted(delta.shape[2] for delta in deltas) == [1, 7, 7, 7]
    for delta in deltas:
        loss = loss + _row_losses(delta[:1], batch.mask[:, : delta.shape[2]]).mean()
    training.optimizer.zero_grad()
    loss.backward()
    return _gradients(training)


def _apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((grad - other[name]).abs().max()) for name, grad in one.items())


def test_gradients_are_those_of_the_penalty_beside_the_loss() -> None:
    assert _apart(_accumulated(), _expected()) < 1e-7, "the task's loss is float32"


@pytest.mark.parametrize(("cuts", "checkpointing"), [((0, 1, 4), False), ((0, 4), True)])
def test_micro_batches_and_checkpointing_change_nothing(
    cuts: tuple[int, ...], checkpointing: bool
) -> None:
    assert _apart(_accumulated(cuts, checkpointing=checkpointing), _accumulated()) < 1e-12


def test_a_neighbour_is_the_same_bit_for_bit_and_replays_too() -> None:
    backbone = tiny.tiny_backbone("bert")
    lanes = [_lane(0, PENALISED, (0, 2)), _lane(1, 4, (0, 2)), _lane(2, PENALISED)]
    make = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    plain = Training(backbone, lanes).run(make, 0, STEPS)
    with _penalty(_hung):
        hung = Training(backbone, lanes).run(make, 0, STEPS)
        recorder = Training(backbone, lanes, recorder=Replayed())
        replayed = recorder.run(make, 0, STEPS)
        solo = Training(backbone, lanes[:1]).run(make, 0, STEPS)
    assert furthest(hung[1], plain[1]) == 0.0
    assert min(furthest(hung[number], plain[number]) for number in (0, 2)) > 1e-5
    assert furthest(solo[0], hung[0]) < 1e-9
    assert recorder.steps.replayed == STEPS - 1
    assert max(furthest(replayed[number], hung[number]) for number in hung) < 1e-12


def test_a_mask_speaks_of_its_own_tokens_and_of_the_first() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    call = Call(True, lambda name, shape: torch.ones(shape), mask=mask)
    assert torch.equal(real_tokens(call, 3), mask)
    assert torch.equal(real_tokens(call, 1), mask[:, :1])
    assert real_tokens(call, 5).tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    with pytest.raises(RuntimeError, match="nothing of 2"):
        real_tokens(call, 2)
