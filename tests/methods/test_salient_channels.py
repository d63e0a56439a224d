"""Salient channels before a norm that is behind their sub-layer; else see `test_linear_maps`."""

from dataclasses import replace

import tiny_backbones as tiny
import torch
from dense_models import frozen_maps, logits_of
from importance_maps import with_importance
from method_cases import configuration
from referenced_cases import DenseCase, role_of

from autopeft.methods import registry
from autopeft.methods.base import DenseMap

NAME = "salient_channels"


def test_the_last_map_takes_it_up_before_a_norm() -> None:
    """Gemma 3's, behind both sub-layers."""
    backbone, batch = tiny.tiny_backbone("gemma3_text"), tiny.tiny_batch("gemma3_text")
    backbone = replace(backbone, anatomy=with_importance(backbone.anatomy))
    assert {"attention_post_norm", "ffn_post_norm"} <= set(backbone.anatomy.layers[0].norms)
    case = DenseCase.of(backbone, configuration(NAME, backbone.anatomy))
    frozen, merged = frozen_maps(backbone), {}
    for place in registry[NAME].places(case.group, backbone.anatomy):
        at = place.layer, role_of(place.site)
        own = case.at(place.layer, place.site)
        found = registry[NAME].merged(case.group, place, own, DenseMap(*frozen[at]))
        assert found is not None
        merged[at] = found.weight, found.bias
    assert {role for _, role in merged} == {"output", "down"}
    outputs = case.logits(batch)
    for maps in (merged, case.dense_maps()):
        expected = logits_of(backbone, maps, batch, backbone.head(3), case.tensors)
        # transformers computes norms in float32, which makes 1e-7 of a last bit.
        assert torch.allclose(outputs, expected, rtol=0.0, atol=1e-6)
    assert not torch.allclose(outputs, case.plain(batch), rtol=0.0, atol=1e-3)
