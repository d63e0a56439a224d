"""What methods cost that multiply with frozen weights, or with the parts of them."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from dense_models import frozen_maps
from importance_maps import with_importance
from lane_case import LaneCase
from method_cases import configuration

from autopeft import counting
from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Configuration
from autopeft.methods import registry
from autopeft.methods.base import DenseMap
from autopeft.training.memory import estimate
from autopeft.training.step_shape import StepShape, Weights

TOKENS, LAST = 10, 2


def _on_query(name: str, anatomy: Anatomy, **settings: object) -> Configuration:
    return configuration(name, anatomy, layers=[LAST], sites=["query"], **settings)


def _own_flops(name: str, **settings: object) -> float:
    """Of the operator alone, per token."""
    anatomy = tiny.tiny_backbone("bert").anatomy
    lane = _on_query(name, anatomy, **settings)
    shape = [s.in_features * s.out_features for s in anatomy.layers[0].sites.values()]
    backbone = 2.0 * sum(shape) * (len(anatomy.layers) + 1)
    return counting.training_flops(lane, anatomy, TOKENS) / TOKENS - backbone


def test_flops_count_frozen_products_twice_and_trained_ones_thrice() -> None:
    d = tiny.HIDDEN
    assert _own_flops("road", size=2) == 6 * 2 * d
    assert _own_flops("ether", size=4) == 4 * (d * d + d) + 6 * d
    assert _own_flops("svft", size=1) == 4 * 2 * d * d + 6 * (d + 1)
    blocks = d // 8 * (8 * 7 // 2)
    assert _own_flops("oft", size=8) == 4 * (d * d + 8 * d - blocks) + 6 * blocks
    assert _own_flops("kasa", size=3) == 4 * 3 * 2 * d + 6 * 3 * (2 * d + 1)


def test_lanes_share_one_decomposition_in_memory() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    lane = _on_query("svft", anatomy, size=1)
    needed = [
        estimate(
            [lane] * lanes,
            anatomy,
            head_params=0,
            shape=StepShape(rows=2, tokens=8),
            weights=Weights(),
        ).lanes
        for lanes in (1, 2, 3)
    ]
    more = needed[1] - needed[0]
    assert needed[2] - needed[1] == more > 0
    d = tiny.HIDDEN
    assert needed[0] - more == 4 * d * (2 * d + 1)


def test_what_is_merged_takes_the_decomposition_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A method that decomposed the weight anew would take a minute a map of a large model."""
    backbone = tiny.tiny_backbone("bert")
    backbone = replace(backbone, anatomy=with_importance(backbone.anatomy))
    names = [n for n in registry.names() if registry[n].schema.sites == LINEAR_ROLES]
    cases = [LaneCase.of(backbone, configuration(n, backbone.anatomy)) for n in names]
    asked = {case.group.method for case in cases for _ in _merged(case, monkeypatch)}
    assert asked >= {"comp_lora", "kasa", "psoft", "svft", "vectorfit"}


def _merged(case: LaneCase, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Merges a lane everywhere; the places at which it asked for the weight's SVD."""
    name, backbone, asked = case.group.method, case.backbone, []
    maps = frozen_maps(backbone)
    for place in registry[name].places(case.group, backbone.anatomy):
        at = place.layer, place.site
        kept = backbone.frozen_map(*at).svd_on_cpu()

        def known(at: tuple[int, str] = at, kept: Any = kept) -> Any:
            asked.append(at)
            return kept

        with monkeypatch.context() as patched:
            patched.setattr(torch.linalg, "svd", _refuse)
            registry[name].merged(case.group, place, case.at(*at), DenseMap(*maps[at], known))
    return asked


def _refuse(*args: Any, **options: Any) -> Any:
    raise AssertionError("a weight was decomposed again")
