"""What no method may do in a step: wait for the device, or touch a sick lane's neighbours."""

from collections.abc import Collection

import pytest
import tiny_backbones as tiny
import torch
from every_method import lanes_of_each, measured_backbone
from lane_training import Training, without_cache
from method_cases import carried
from waits import waits

from autopeft.methods.comp_lora import n_main
from autopeft.training.lanes.pack import Lane


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_no_step_waits_for_the_device(architecture: str, turn: int) -> None:
    """Forward, loss, backward and update, once the frozen weights' decompositions are there."""
    backbone = measured_backbone(architecture)
    lanes = lanes_of_each(backbone, carried(backbone.anatomy), turn=turn, placed=[(1,)])
    training = Training(backbone, lanes)
    batches = [tiny.tiny_batch(architecture, seed=step) for step in range(2)]
    make = without_cache(lambda step: batches[step])
    with training.pack.running():
        training.step(make, 0)
        with waits() as noted:
            training.step(make, 1)
    assert not noted.found


def test_waiting_is_seen() -> None:
    """By a function of a method that reads a number off a tensor, outside all steps."""
    with waits() as noted:
        n_main(torch.tensor([3.0, 2.0, 1.0]), 0.9)
    assert {found.rsplit("/", 1)[-1].split(":")[0] for found in noted.found} == {"comp_lora.py"}


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
