"""Lanes of one method, of all its sizes and choices, trained together and alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from every_method import lanes_of_each, measured_backbone
from importance_maps import with_importance
from lane_training import Training, furthest, without_cache
from method_cases import carried, configuration, dropout, sizes, variants

from autopeft.backbone.loading import Backbone
from autopeft.methods import registry
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.state import LaneState, take_state

STEPS = 4
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.1}
BATCHES = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
UNREAD = "reft.2."
"""Edits of some tokens alone, at the last layer: the head reads the first one."""


def _backbone(dtype: torch.dtype) -> Backbone:
    backbone = tiny.tiny_backbone("bert", dtype)
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


def _few_sites(name: str) -> dict[str, Any]:
    """Maps of three shapes are enough to be packed."""
    few = [site for site in ("query", "up", "down") if site in registry[name].schema.sites]
    return {"sites": few} if few else {}


@pytest.mark.parametrize("name", registry.names())
def test_packed_equals_solo_and_a_file_goes_on(name: str, tmp_path: Path) -> None:
    """Every size and choice at once, with dropout and decay, on two layers and on the last."""
    backbone = _backbone(torch.float64)
    cases = [{"size": size} for size in sizes(name, backbone.anatomy)] + variants(name)
    lanes = [
        Lane(
            number,
            configuration(
                name,
                backbone.anatomy,
                layers=(0, 2) if number % 2 else (2,),
                training=TRAINING,
                **(_few_sites(name) | dropout(name, 0.2) | given),
            ),
        )
        for number, given in enumerate(cases)
    ]
    packed = Training(backbone, lanes).run(BATCHES, 0, STEPS)
    for lane in lanes:
        solo = Training(backbone, [lane])
        before = take_state(solo.pack, solo.optimizer, 0)[lane.number]
        half = solo.run(BATCHES, 0, STEPS // 2)[lane.number]
        half.save(tmp_path / "lane.safetensors")
        loaded = LaneState.load(tmp_path / "lane.safetensors")
        kept = {lane.number: loaded.kept()}
        resumed = Training(backbone, [lane], saved=kept, checkpointing=lane.number % 2 == 0)
        resumed.put({lane.number: loaded})
        after = resumed.run(BATCHES, STEPS // 2, STEPS)[lane.number]
        assert furthest(after, packed[lane.number]) < 1e-9, lane
        for tensor_name, tensor in before.weights().items():
            if not tensor_name.startswith(("head.", UNREAD)):
                assert not torch.equal(tensor, after.weights()[tensor_name]), tensor_name


@pytest.mark.parametrize("name", registry.names())
def test_packed_equals_solo_in_float32(name: str) -> None:
    backbone = _backbone(torch.float32)
    given = _few_sites(name) | dropout(name, 0.2)
    lanes = [
        Lane(number, configuration(name, backbone.anatomy, size, **given))
        for number, size in enumerate(sizes(name, backbone.anatomy))
    ]
    packed = Training(backbone, lanes, torch.float32).run(BATCHES, 0, STEPS)
    for lane in lanes:
        solo = Training(backbone, [lane], torch.float32).run(BATCHES, 0, STEPS)[lane.number]
        together = packed[lane.number].weights()
        apart = torch.cat([(t - together[n]).abs().ravel() for n, t in solo.weights().items()])
        assert float(apart.max()) < 1e-5, lane


@pytest.mark.parametrize("architecture", ["gpt2", "vit"])
def test_one_pack_of_every_method_equals_solo_and_a_file_goes_on(
    architecture: str, tmp_path: Path
) -> None:
    """On a decoder and a vision transformer, with dropout and decay; two stacked lanes of each."""
    backbone = measured_backbone(architecture)
    assert carried(backbone.anatomy) == sorted(registry.names())
    faster = tuple(sorted({**TRAINING, "learning_rate": 3e-3}.items()))
    lanes = []
    for lane in lanes_of_each(backbone, registry.names(), placed=[(1,)], turn=1):
        twin = replace(lane.configuration, training=faster)
        lanes += [Lane(2 * lane.number, lane.configuration), Lane(2 * lane.number + 1, twin)]
    batches = without_cache(lambda step: tiny.tiny_batch(architecture, seed=step))
    packed = Training(backbone, lanes).run(batches, 0, 3)
    for lane in lanes[1::2]:
        (name,) = lane.configuration.methods
        assert furthest(packed[lane.number], packed[lane.number - 1]) > 1e-6, name
        solo = Training(backbone, [lane])
        solo.run(batches, 0, 2)[lane.number].save(tmp_path / "lane.safetensors")
        loaded = LaneState.load(tmp_path / "lane.safetensors")
        resumed = Training(backbone, [lane], saved={lane.number: loaded.kept()})
        resumed.put({lane.number: loaded})
        after = resumed.run(batches, 2, 3)[lane.number]
        assert furthest(after, packed[lane.number]) < 1e-9, name
