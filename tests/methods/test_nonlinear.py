"""Methods that no weights can stand for, against references hooked into the plain backbone.

`references/NAME.py` says in float64 what becomes of a site's output: `output`, and `row_losses`
where it adds anything to the lane's loss, see `referenced_cases`.
"""

from dataclasses import replace
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from importance_maps import with_importance
from method_cases import configuration, variants
from reference_files import reference
from referenced_cases import OutputCase, named
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.loading import Backbone
from autopeft.counting import faults
from autopeft.methods import registry

NAMES = named("output")
FAMILIES = ("bert", "gpt2", "llama", "vit", "t5", "modernbert")
ROUNDED = {"llama": 1e-6, "t5": 1e-6, "modernbert": 1e-6}
"""Where transformers computes norms or rotations in float32, which makes 1e-7 of a last bit."""
LAYERS = (0, 1)
"""Below the last layer, of which lanes run most on the first token alone where a head reads no
more: row losses are then of that token."""


def _backbone(architecture: str) -> Backbone:
    backbone = tiny.tiny_backbone(architecture)
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


def _cases(name: str, architecture: str) -> list[dict[str, Any]]:
    """All variants on one architecture, the first elsewhere."""
    return variants(name) if architecture == "bert" else variants(name)[:1]


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_references(name: str, architecture: str) -> None:
    backbone, batch = _backbone(architecture), tiny.tiny_batch(architecture)
    near = ROUNDED.get(architecture, 1e-9)
    for given in _cases(name, architecture):
        case = OutputCase.of(backbone, configuration(name, backbone.anatomy, **given))
        found, expected = case.logits(batch), case.expected(batch)
        assert torch.allclose(found, expected, rtol=0.0, atol=near), given
        assert not torch.allclose(found, case.plain(batch), rtol=0.0, atol=1e-5), (
            f"{given}: it had no effect"
        )
        _compare(case, *(functional.cross_entropy(o, batch.labels) for o in (found, expected)))
        for place in registry[name].places(case.group, backbone.anatomy):
            own = case.at(place.layer, place.site)
            assert registry[name].merged(case.group, place, own, None) is None  # type: ignore[arg-type]


def _compare(case: OutputCase, found: Tensor, expected: Tensor) -> None:
    for item in case.pack.stacked():
        item.parameter.grad = None
    found.backward()
    stacked = case.pack.stacked()
    grads = {i.name: i.parameter.grad for i in stacked if i.parameter.grad is not None}
    own = case.pack.lane_views(grads, 0)
    leaves = {name: tensor for name, tensor in case.tensors.items() if tensor.requires_grad}
    theirs = torch.autograd.grad(
        expected, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    for name, grad in zip(leaves, theirs, strict=True):
        mine = own.get(name, torch.zeros_like(grad))
        assert torch.allclose(mine, grad, rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(reference(n), "row_losses")])
def test_row_losses_join_the_gradients(name: str, architecture: str) -> None:
    backbone, batch = _backbone(architecture), tiny.tiny_batch(architecture)
    for given in _cases(name, architecture):
        own = configuration(name, backbone.anatomy, layers=LAYERS, **given)
        case = OutputCase.of(backbone, own)
        found = functional.cross_entropy(case.logits(batch, training=True), batch.labels)
        task = functional.cross_entropy(case.expected(batch, training=True), batch.labels)
        penalty = case.penalty()
        assert torch.allclose(found, task, rtol=0.0, atol=ROUNDED.get(architecture, 1e-9))
        assert float(penalty.detach()) > 0.0
        _compare(case, found, task + penalty)


def test_experts_sit_where_a_map_runs_on_tokens_alone() -> None:
    """DeBERTa's relative attention runs query and key maps on its table of positions too."""
    backbone, batch = _backbone("deberta-v2"), tiny.tiny_batch("deberta-v2")
    (fault,) = faults(
        configuration("moelora", backbone.anatomy, sites=["query", "value"], layers=LAYERS),
        backbone.anatomy,
    )
    assert (fault.given, fault.allowed) == ("query", "value, output, up, down")
    case = OutputCase.of(
        backbone, configuration("moelora", backbone.anatomy, sites=["value"], layers=LAYERS)
    )
    found = functional.cross_entropy(case.logits(batch, training=True), batch.labels)
    task = functional.cross_entropy(case.expected(batch, training=True), batch.labels)
    assert torch.allclose(found, task, rtol=0.0, atol=1e-9)
    _compare(case, found, task + case.penalty())
