"""What no method may do in a step: wait for the device, or touch a sick lane's neighbours."""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from every_method import lanes_of_each, measured_backbone
from lane_training import Training, without_cache
from method_cases import carried
from torch.utils._python_dispatch import TorchDispatchMode

import autopeft
from autopeft.methods.comp_lora import n_main
from autopeft.training.lanes.pack import Lane

HOME = str(Path(autopeft.__file__).parent)
WAITING = (
    "_local_scalar_dense",  # item(), int(), float(), bool()
    "nonzero",
    "masked_select",
    "unique",
    "equal.default",
    "bincount",
    "repeat_interleave.Tensor",  # as many rows as it is told by a tensor
    "lift_fresh",  # torch.tensor(...): from the host's memory, which no graph can hold
)
"""Operations whose result, or its shape, the host must read, or that it must write, by name."""


class Waits(TorchDispatchMode):
    """Notes where the project's own code makes the host wait for the device.

    Attributes:
        found: `operation at file:line` of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if any(each in name for each in WAITING) or _is_masked(name, args):
            self.found |= {f"{name} at {own}" for own in _own_place()}
        return func(*args, **(kwargs or {}))


def _is_masked(name: str, args: Sequence[Any]) -> bool:
    """Whether tensors are indexed by a mask, whose size the host must know."""
    if not name.startswith(("aten.index.", "aten.index_put")):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def _own_place() -> Iterator[str]:
    """The project's line that called an operation, unless transformers did so in between."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "transformers" in Path(name).parts:
            return
        if name.startswith(HOME):
            yield f"{name}:{frame.f_lineno}"
            return
        frame = frame.f_back  # type: ignore[assignment]


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_no_step_waits_for_the_device(architecture: str, turn: int) -> None:
    """Forward, loss, backward and update, once the frozen weights' decompositions are there."""
    backbone = measured_backbone(architecture)
    lanes = lanes_of_each(backbone, carried(backbone.anatomy), turn=turn, placed=[(1,)])
    training = Training(backbone, lanes)
    batches = [tiny.tiny_batch(architecture, seed=step) for step in range(2)]
    make = without_cache(lambda step: batches[step])
    waits = Waits()
    with training.pack.running():
        training.step(make, 0)
        with waits:
            training.step(make, 1)
    assert not waits.found


def test_waiting_is_seen() -> None:
    """By a function of a method that reads a number off a tensor, outside all steps."""
    with Waits() as waits:
        n_main(torch.tensor([3.0, 2.0, 1.0]), 0.9)
    assert {found.rsplit("/", 1)[-1].split(":")[0] for found in waits.found} == {"comp_lora.py"}


def test_a_sick_lane_leaves_its_neighbours_bit_for_bit() -> None:
    """Two like lanes of every method in one pack, of which the second turns sick after a step."""
    backbone = measured_backbone("bert")
    lanes = lanes_of_each(backbone, carried(backbone.anatomy), placed=[(1, 2)])
    twins = [Lane(len(lanes) + lane.number, lane.configuration) for lane in lanes]
    make = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    healthy = Training(backbone, [*lanes, *twins])
    start = healthy.run(make, 0, 1)
    expected = healthy.run(make, 1, 3)
    for poison in (float("nan"), float("inf")):
        sick = Training(backbone, [*lanes, *twins])
        sick.put(start)
        _poison(sick, {twin.number for twin in twins}, poison)
        found = sick.run(make, 1, 3)
        touched = {
            f"{name} of {lane.configuration.groups[0].method}, {poison}"
            for lane in lanes
            for name, tensor in expected[lane.number].tensors.items()
            if not torch.equal(tensor, found[lane.number].tensors[name])
        }
        assert not touched
        assert all(found[lane.number].active for lane in lanes)
        still = {
            twin.configuration.groups[0].method for twin in twins if found[twin.number].active
        }
        assert not still, "they are still trained"
        assert {found[twin.number].updates for twin in twins} == {1}


def _poison(training: Training, numbers: Collection[int], poison: float) -> None:
    """Put a value at the head of every tensor of some lanes' operators."""
    stacked = {item.name: item.parameter.detach() for item in training.pack.stacked()}
    for position, lane in enumerate(training.pack.lanes):
        if lane.number in numbers:
            for name, tensor in training.pack.lane_views(stacked, position).items():
                if not name.startswith("head."):
                    tensor[(0,) * tensor.dim()] = poison
