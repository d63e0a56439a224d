"""Salient channels merged into their sub-layers' last maps."""

from dataclasses import replace

import pytest
import tiny_backbones as tiny
import torch
from dense_models import frozen_maps, logits_of
from importance_maps import with_importance
from lane_case import LaneCase
from method_cases import configuration, variants

from autopeft.backbone.anatomy import EXIT
from autopeft.methods import registry
from autopeft.methods.base import DenseMap

NAME = "salient_channels"
ROUNDED = {"llama": 1e-6, "t5": 1e-6, "modernbert": 1e-6, "gemma3_text": 1e-6}
"""Where transformers computes norms or rotations in float32, which makes 1e-7 of a last bit."""


@pytest.mark.parametrize(
    "architecture", ["bert", "gpt2", "llama", "vit", "t5", "modernbert", "gemma3_text"]
)
def test_the_last_map_of_a_sublayer_takes_it_up(architecture: str) -> None:
    """With and without biases and norms behind the map, in both sub-layers at once."""
    backbone, batch = tiny.tiny_backbone(architecture), tiny.tiny_batch(architecture)
    backbone = replace(backbone, anatomy=with_importance(backbone.anatomy))
    maps = frozen_maps(backbone)
    for given in variants(NAME) if architecture == "bert" else variants(NAME)[:1]:
        case = LaneCase.of(backbone, configuration(NAME, backbone.anatomy, **given))
        merged = {}
        for place in registry[NAME].places(case.group, backbone.anatomy):
            at = place.layer, EXIT[place.site]
            own = case.at(place.layer, place.site)
            found = registry[NAME].merged(case.group, place, own, DenseMap(*maps[at]))
            assert found is not None
            merged[at] = found.weight, found.bias
        assert {role for _, role in merged} == {"output", "down"}
        expected = logits_of(backbone, merged, batch, backbone.head(3), case.tensors)
        near = ROUNDED.get(architecture, 1e-9)
        assert torch.allclose(case.logits(batch), expected, rtol=0.0, atol=near), given
        plain = logits_of(backbone, {}, batch, backbone.head(3), case.tensors)
        assert not torch.allclose(plain, expected, rtol=0.0, atol=1e-3)
