"""Methods that no weights can stand for, against references hooked into the plain backbone.

`references/NAME.py` says in float64 what becomes of a site's output: `output(settings, tensors, x,
y)`, x [B, T, d_in] and y [B, T, d_out] of one lane; of a sub-layer, its input and its output
before the residual. `row_losses(settings, tensors, x, y, mask)` gives what it adds to the lane's
loss for every row, [B], where it adds anything. `settings` are the group's, with `site`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from dense_models import logits_of
from importance_maps import with_importance
from lane_case import LaneCase
from method_cases import configuration, variants
from reference_files import REFERENCES, reference
from torch import Tensor, nn
from torch.nn import functional

from autopeft.backbone.anatomy import ENTRANCE, EXIT, SUBLAYERS
from autopeft.backbone.loading import Backbone
from autopeft.counting import faults
from autopeft.methods import registry
from autopeft.training.batches import Batch

NAMES = [
    name
    for name in registry.names()
    if (REFERENCES / f"{name}.py").exists() and hasattr(reference(name), "output")
]
FAMILIES = ("bert", "gpt2", "llama", "vit", "t5", "modernbert")
ROUNDED = {"llama": 1e-6, "t5": 1e-6, "modernbert": 1e-6}
"""Where transformers computes norms or rotations in float32, which makes 1e-7 of a last bit."""
LAYERS = (0, 1)
"""Below the last layer, of which lanes run most on the first token alone where a head reads no
more: row losses are then of that token."""


@dataclass
class Case(LaneCase):
    """Compared by the plain backbone with the reference at every site.

    Attributes:
        row_losses: Of its last pass, [B] by site.
    """

    row_losses: list[Tensor] = field(default_factory=list)

    def reference_logits(self, batch: Batch, *, training: bool = False) -> Tensor:
        """The plain backbone's with the reference at every site; in training, notes row losses."""
        with self._hooked(batch.mask if training else None):
            return logits_of(self.backbone, {}, batch, self.backbone.head(3), self.tensors)

    @contextmanager
    def _hooked(self, mask: Tensor | None) -> Iterator[None]:
        self.row_losses, handles = [], []
        method, anatomy = registry[self.group.method], self.backbone.anatomy
        for place in method.places(self.group, anatomy):
            sublayer = place.site in SUBLAYERS
            role = EXIT[place.site] if sublayer else place.site
            site = anatomy.site(place.layer, role)
            first = ENTRANCE[place.site] if sublayer else role
            kept: dict[str, Tensor] = {}
            entrance = self.backbone.model.get_submodule(anatomy.site(place.layer, first).module)
            handles.append(entrance.register_forward_pre_hook(_keeping(kept)))
            columns = slice(site.start, site.start + site.out_features)
            changed = self._changed(place.layer, place.site, kept, columns, mask)
            module = self.backbone.model.get_submodule(site.module)
            handles.append(module.register_forward_hook(changed))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _changed(
        self, layer: int, site: str, kept: dict[str, Tensor], columns: slice, mask: Tensor | None
    ) -> Callable[..., Tensor]:
        own, module = self.at(layer, site), reference(self.group.method)
        settings = self.settings(site)

        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            x, y = kept.pop("x"), output[..., columns]
            if mask is not None:
                self.row_losses.append(module.row_losses(settings, own, x, y, mask))
            total = output.clone()
            total[..., columns] = module.output(settings, own, x, y)
            return total

        return hook


def _keeping(kept: dict[str, Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.setdefault("x", args[0])

    return hook


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
        case = Case.of(backbone, configuration(name, backbone.anatomy, **given))
        found, expected = case.logits(batch), case.reference_logits(batch)
        assert torch.allclose(found, expected, rtol=0.0, atol=near), given
        plain = logits_of(backbone, {}, batch, backbone.head(3), case.tensors)
        assert not torch.allclose(found, plain, rtol=0.0, atol=1e-5), f"{given}: it had no effect"
        _compare(case, *(functional.cross_entropy(o, batch.labels) for o in (found, expected)))
        for place in registry[name].places(case.group, backbone.anatomy):
            own = case.at(place.layer, place.site)
            assert registry[name].merged(case.group, place, own, None) is None  # type: ignore[arg-type]


def _compare(case: Case, found: Tensor, expected: Tensor) -> None:
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
        case = Case.of(backbone, own)
        found = functional.cross_entropy(case.logits(batch, training=True), batch.labels)
        task = functional.cross_entropy(case.reference_logits(batch, training=True), batch.labels)
        penalty = torch.stack(case.row_losses).sum(0).mean()
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
    case = Case.of(
        backbone, configuration("moelora", backbone.anatomy, sites=["value"], layers=LAYERS)
    )
    found = functional.cross_entropy(case.logits(batch, training=True), batch.labels)
    task = functional.cross_entropy(case.reference_logits(batch, training=True), batch.labels)
    assert torch.allclose(found, task, rtol=0.0, atol=1e-9)
    _compare(case, found, task + torch.stack(case.row_losses).sum(0).mean())
