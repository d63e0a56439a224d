"""MoELoRA's anchors, padding, and routing that cannot be."""

import pytest
import tiny_backbones as tiny
import torch
from lane_training import Training, furthest, without_cache
from method_cases import configuration

from autopeft import counting
from autopeft.methods import moelora
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.seeds import Seeds, StepUniform

CPU = torch.device("cpu")


def _training(*sizes: int) -> Training:
    backbone = tiny.tiny_backbone("bert")
    given = {"layers": (0, 1), "sites": ["query", "up"], "contrast": 1.0}
    lanes = [
        Lane(n, configuration("moelora", backbone.anatomy, size, **given))
        for n, size in enumerate(sizes)
    ]
    return Training(backbone, lanes)


def _moved(training: Training) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in training.pack.operators.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return {item.name: item.parameter for item in training.pack.stacked()}


def _wider(batch: Batch, more: int) -> Batch:
    inputs = {n: torch.nn.functional.pad(t, (0, more)) for n, t in batch.inputs.items()}
    return Batch(inputs, inputs["attention_mask"], batch.labels)


def test_padding_changes_no_gradient() -> None:
    batch, found = tiny.tiny_batch("bert", rows=4), []
    for own in (batch, _wider(batch, 5)):
        training = _training(3)
        tensors = _moved(training)
        training.optimizer.zero_grad()
        with training.pack.running():
            training.steps.accumulate(own, {}, StepUniform(Seeds(0), 0, 0, 4, CPU), weight=4)
        found.append({name: tensor.grad.clone() for name, tensor in tensors.items()})  # type: ignore[union-attr]
    for name, grad in found[0].items():
        assert torch.allclose(grad, found[1][name], rtol=0.0, atol=1e-9), name


def test_anchors_are_real_tokens_drawn_anew_and_lanes_stay_as_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moelora, "ANCHOR_TOKENS", 3)
    mask = torch.ones(5, 12, dtype=torch.long)
    mask[1:, 7:], mask[4, 2:] = 0, 0
    operator = _training(1).pack.operators[0]
    assert isinstance(operator, moelora.MoeLoraOperator)
    seen = []
    for step in range(20):
        draws = StepUniform(Seeds(0), step, 0, 5, CPU)
        tokens, real = operator._anchor_tokens(Call(True, draws, mask=mask))
        assert torch.equal(real, mask.gather(1, tokens))
        assert real.sum(1).tolist() == [3, 3, 3, 3, 2]
        assert all(len(set(row)) == 3 for row in tokens.tolist())
        seen.append(tokens[0])
    assert set(torch.cat(seen).tolist()) == set(range(12)), "all tokens have their turn"
    make = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    packed = _training(1, 3).run(make, 0, 4)
    assert furthest(packed[0], _training(1).run(make, 0, 4)[0]) < 1e-9


def test_a_neighbours_prompt_lengthens_rows_and_changes_nothing() -> None:
    backbone = tiny.tiny_backbone("bert")
    cases = [
        configuration("moelora", backbone.anatomy, 3, layers=(0, 1), contrast=1.0),
        configuration("adapter_plus", backbone.anatomy, 3, layers=(0, 1), drop_path=0.5),
        configuration("prompt", backbone.anatomy, 4, layers=(0,)),
    ]
    lanes = [Lane(number, case) for number, case in enumerate(cases)]
    make = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    packed = Training(backbone, lanes).run(make, 0, 4)
    for lane in lanes:
        alone = Training(backbone, [lane]).run(make, 0, 4)[lane.number]
        assert furthest(alone, packed[lane.number]) < 1e-9, lane


def test_no_more_experts_are_chosen_than_there_are() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    wrong = configuration("moelora", anatomy, experts=2, top_k=3)
    (fault,) = counting.faults(wrong, anatomy)
    assert (fault.key, fault.given) == ("moelora.top_k", "3")
    assert "at most 2" in fault.allowed
    assert not counting.faults(configuration("moelora", anatomy, experts=3, top_k=3), anatomy)
