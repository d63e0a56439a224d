"""Two passes with other draws: what is compared, and who notices."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from lane_training import Training, furthest, without_cache
from method_cases import configuration
from torch import Tensor
from torch.nn import functional

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.methods.lane_operator import Call
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.comparing import Comparison
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.memory import estimate
from autopeft.training.settings import LoopSettings
from autopeft.training.step_shape import StepShape, Weights, lanes_of_passes

WEIGHT = 2.5
CPU = torch.device("cpu")


def _adamix(backbone: Backbone, weight: float = WEIGHT, size: int = 3) -> Configuration:
    own = {"sites": ["ffn"], "consistency": weight, "dropout": 0.2}
    return configuration("adamix", backbone.anatomy, size, layers=(0, 2), **own)


def _lora(backbone: Backbone) -> Configuration:
    own = {"sites": ["query", "up"], "dropout": 0.2}
    return configuration("lora", backbone.anatomy, 3, layers=(0, 2), **own)


def _moved(training: Training) -> None:
    """Experts start alike: they have to differ, or both passes would be the same."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in training.pack.operators.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def _gradients(
    cuts: tuple[int, ...] = (0, 4), *, checkpointing: bool = False
) -> dict[str, Tensor]:
    backbone = tiny.tiny_backbone("bert")
    training = Training(backbone, [Lane(0, _adamix(backbone))], checkpointing=checkpointing)
    _moved(training)
    whole = tiny.tiny_batch("bert", rows=4, seed=1)
    training.optimizer.zero_grad()
    with training.pack.running():
        for start, stop in pairwise(cuts):
            inputs = {name: tensor[start:stop] for name, tensor in whole.inputs.items()}
            part = type(whole)(inputs, whole.mask[start:stop], whole.labels[start:stop])
            draws = StepUniform(Seeds(7), 0, start, 4, CPU)
            losses = training.steps.accumulate(part, {}, draws, weight=4)
    assert float(losses) < 3.0, "a reported loss is the task's alone"
    return {item.name: item.parameter.grad.clone() for item in training.pack.stacked()}


def test_gradients_are_those_of_both_passes_and_their_divergence() -> None:
    backbone, batch = tiny.tiny_backbone("bert"), tiny.tiny_batch("bert", rows=4, seed=1)
    training = Training(backbone, [Lane(0, _adamix(backbone))])
    _moved(training)
    plain = StepUniform(Seeds(7), 0, 0, 4, CPU)

    def other(name: str, shape: tuple[int, ...], *, per_row: bool = True) -> Tensor:
        return plain(f"{name}/again", shape, per_row=per_row)

    with training.pack.running():
        one, two = (training.pack(batch, Call(True, draws))[0] for draws in (plain, other))
    assert float((one - two).detach().abs().max()) > 1e-3
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    ways = (p, q), (q, p)
    both = [functional.kl_div(*way, log_target=True, reduction="batchmean") for way in ways]
    training.optimizer.zero_grad()
    (functional.cross_entropy(one, batch.labels) + WEIGHT * sum(both) / 2).backward()
    found = _gradients()
    for item in training.pack.stacked():
        grad = item.parameter.grad
        assert torch.allclose(found[item.name], grad, rtol=1e-5, atol=1e-7), item.name


@pytest.mark.parametrize(("cuts", "checkpointing"), [((0, 1, 4), False), ((0, 4), True)])
def test_micro_batches_and_checkpointing_change_nothing(
    cuts: tuple[int, ...], checkpointing: bool
) -> None:
    found, expected = _gradients(cuts, checkpointing=checkpointing), _gradients()
    for name, grad in expected.items():
        assert torch.allclose(found[name], grad, rtol=1e-5, atol=1e-7), name


class Replayed:
    """Runs again what it is given, on the buffers it was given it with."""

    def record(self, run: object) -> object:
        """`run` itself."""
        return run


def test_neighbours_are_the_same_bit_for_bit_and_replays_too() -> None:
    backbone = tiny.tiny_backbone("bert")
    make = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))

    def lanes(weight: float) -> list[Lane]:
        cases = (_lora(backbone), _adamix(backbone, weight), _adamix(backbone, 0.0, 4))
        return [Lane(number, case) for number, case in enumerate(cases)]

    alone = Training(backbone, lanes(0.0)).run(make, 0, 4)
    compared = Training(backbone, lanes(WEIGHT)).run(make, 0, 4)
    assert furthest(alone[0], compared[0]) == furthest(alone[2], compared[2]) == 0.0
    assert furthest(alone[1], compared[1]) > 1e-5
    replays = Training(backbone, lanes(WEIGHT), recorder=Replayed())  # type: ignore[arg-type]
    replayed = replays.run(make, 0, 4)
    assert replays.steps.replayed == 3
    assert max(furthest(replayed[number], compared[number]) for number in compared) < 1e-12


def _trainer() -> Trainer:
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(4, 64, n).astype(np.int32) for n in rng.integers(3, 12, 24))
    examples = Examples(ids, rng.integers(0, 3, 24))
    settings = LoopSettings("sequence-classification", ("loss",), 4, 8, 8, lanes_per_pass=2)
    backbone = tiny.tiny_backbone("bert", torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    data = TaskData(examples, examples, ("a", "b", "c"), "", ())
    return Trainer(backbone, data, settings, study_seed=3)


def test_lanes_that_compare_passes_run_apart_from_those_that_do_not() -> None:
    backbone = tiny.tiny_backbone("bert", torch.float32)
    one, two = _lora(backbone), _adamix(backbone)
    lanes = [Lane(number, case) for number, case in enumerate((one, two, one, two, one))]

    def run(own: list[Lane]) -> PackRun:
        started = _trainer().start(own)
        started.train(4)
        return started

    packed = run(lanes)
    together = [[lane.number for lane in pack.lanes] for pack in packed.packs]
    assert together == [[0, 2], [4], [1, 3]]
    assert [lane.number for lane in packed.lanes] == [0, 2, 4, 1, 3]
    states, values = packed.states(), packed.evaluate()
    for number in (1, 2):
        alone = run([lanes[number]])
        for name, tensor in alone.states()[number].weights().items():
            assert float((tensor - states[number].weights()[name]).abs().max()) < 1e-5, name
        loss = alone.evaluate()[number].values["loss"]
        assert values[number].values["loss"] == pytest.approx(loss, abs=1e-5)
    kinds = [(1, 0), (2, 0), (1, 0), (1, 4)]
    assert lanes_of_passes(kinds, 0) == [[0, 2], [3], [1]]


def test_the_second_pass_draws_under_other_names_and_adds_no_row_losses() -> None:
    outputs, names, calls = torch.zeros(2, 4, 3), [], []

    def pack(batch: object, call: Call, known: object) -> Tensor:
        calls.append(call)
        call.uniform("site", (4, 1))
        return outputs

    def draws(name: str, shape: object, *, per_row: bool = True) -> Tensor:
        names.append(name)
        return torch.zeros(4, 1)

    def apart(one: Tensor, other: Tensor, batch: object) -> Tensor:
        assert len(one) == len(other) == 1
        return torch.ones(1)

    compared = Comparison(pack, apart, torch.tensor([1]), torch.tensor([2.0]))  # type: ignore[arg-type]
    call = Call(True, draws, row_share=torch.tensor(0.25))
    assert float(compared.loss(outputs, None, call, {})) == 2.0  # type: ignore[arg-type]
    assert names == ["site/again"]
    assert calls[0].training
    assert calls[0].row_share is None


def test_two_passes_cost_twice_as_much() -> None:
    backbone = tiny.tiny_backbone("bert", torch.float32)
    anatomy, one, two = backbone.anatomy, _adamix(backbone, 0.0), _adamix(backbone)
    flops = [counting.training_flops(case, anatomy, 10) for case in (one, two)]
    assert flops[1] == 2 * flops[0]
    shape, weights = StepShape(8, 12), Weights()
    kept = [
        estimate([case], anatomy, head_params=9, shape=shape, weights=weights).activations
        for case in (one, two)
    ]
    assert kept[1] == 2 * kept[0]
    half = replace(two, groups=())
    assert counting.passes(half, anatomy) == 1
