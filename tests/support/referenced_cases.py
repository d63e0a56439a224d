"""Lanes held against what `tests/methods/references` says of their methods.

A reference writes a method's formula out in float64, in one of the `FORMS`. Its functions get
`settings`, those of the group with the `site`, and a lane's tensors at the place by name.

- `dense(settings, tensors, weight, bias)`: what becomes of a frozen map, W [d_in, d_out] and b
  [d_out]; of a norm, its scale and shift; of a sub-layer, its last map. See `dense_models`.
- `output(settings, tensors, x, y)`: what becomes of a site's output, x [B, T, d_in] and y
  [B, T, d_out]; of a sub-layer, its input and its output before the residual. In training,
  `row_losses(settings, tensors, x, y, mask)` [B] is what it adds to the lane's loss for every row.
- Hidden states, or what stands before the text, see `changed_models`.

`auxiliary(settings, tensors)` is what a place adds to the loss. `MATRICES` names tensors of one
axis that decay all the same, and `rate(settings, name)` is a tensor's learning rate in units of
the lane's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from changed_models import output_of
from dense_models import frozen_maps, head_logits, logits_of
from lane_case import LaneCase
from reference_files import REFERENCES, reference
from torch import Tensor, nn

from autopeft.backbone.anatomy import ENTRANCE, EXIT
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.methods import registry
from autopeft.training.batches import Batch

FORMS: Mapping[str, tuple[str, ...]] = {
    "dense": ("dense",),
    "output": ("output",),
    "hidden states": ("before", "at_input", "at_output", "heads", "keys_values"),
}


def form_of(name: str) -> str:
    """Which of `FORMS` a method's reference has; "" where there is none, or none alone."""
    if not (REFERENCES / f"{name}.py").exists():
        return ""
    own = reference(name)
    found = [form for form, says in FORMS.items() if any(hasattr(own, each) for each in says)]
    return found[0] if len(found) == 1 else ""


def named(form: str) -> list[str]:
    """Registered methods whose references have a form."""
    return [name for name in registry.names() if form_of(name) == form]


class ReferencedCase(LaneCase):
    """A lane, and the logits of its reference."""

    def expected(self, batch: Batch, *, training: bool = False) -> Tensor:
        """What the reference makes of the plain backbone, [B, n_outputs]."""
        raise NotImplementedError

    def plain(self, batch: Batch) -> Tensor:
        """Logits of the backbone alone, under the lane's head."""
        return logits_of(self.backbone, {}, batch, self.backbone.head(3), self.tensors)

    def penalty(self) -> Tensor | None:
        """What the reference adds to the loss beside the rows' own; None for nothing."""
        auxiliary = getattr(reference(self.group.method), "auxiliary", None)
        if auxiliary is None:
            return None
        places = registry[self.group.method].places(self.group, self.backbone.anatomy)
        at = [(place.layer, place.site) for place in places]
        each = [auxiliary(self.settings(site), self.at(layer, site)) for layer, site in at]
        return torch.stack(each).sum()


class DenseCase(ReferencedCase):
    """Compared by dense weights."""

    def dense_maps(self) -> dict[tuple[int, str], tuple[Tensor, Tensor | None]]:
        """The reference's maps, by layer and role."""
        dense, frozen = reference(self.group.method).dense, frozen_maps(self.backbone)
        return {
            (layer, role_of(site)): dense(
                self.settings(site), self.at(layer, site), *frozen[layer, role_of(site)]
            )
            for layer in self.group.layers
            for site in self.group.sites
        }

    def expected(self, batch: Batch, *, training: bool = False) -> Tensor:
        """Logits of the backbone with the reference's maps."""
        return logits_of(
            self.backbone, self.dense_maps(), batch, self.backbone.head(3), self.tensors
        )


def role_of(site: str) -> str:
    """The map or norm that stands for a site: of a sub-layer, the one that gives its output."""
    return EXIT.get(site, site)


@dataclass
class OutputCase(ReferencedCase):
    """Compared by the plain backbone with the reference at every site.

    Attributes:
        row_losses: Of its last pass in training, [B] by site.
    """

    row_losses: list[Tensor] = field(default_factory=list)

    def expected(self, batch: Batch, *, training: bool = False) -> Tensor:
        """The plain backbone's with the reference at every site; in training, notes row losses."""
        noted = training and hasattr(reference(self.group.method), "row_losses")
        with self._hooked(batch.mask if noted else None):
            return self.plain(batch)

    def penalty(self) -> Tensor | None:
        """The mean of the rows' losses of the last pass."""
        return torch.stack(self.row_losses).sum(0).mean() if self.row_losses else None

    @contextmanager
    def _hooked(self, mask: Tensor | None) -> Iterator[None]:
        self.row_losses, handles = [], []
        method, anatomy = registry[self.group.method], self.backbone.anatomy
        for place in method.places(self.group, anatomy):
            site = anatomy.site(place.layer, role_of(place.site))
            first = ENTRANCE.get(place.site, place.site)
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


class HiddenCase(ReferencedCase):
    """Compared by hooks on the plain backbone's layers and attention."""

    def expected(self, batch: Batch, *, training: bool = False) -> Tensor:
        """The reference's."""
        name = self.group.method
        by_layer = {
            place.layer: self.at(place.layer, place.site)
            for place in registry[name].places(self.group, self.backbone.anatomy)
        }
        out = output_of(self.backbone, reference(name), dict(self.group.settings), by_layer, batch)
        return head_logits(out, batch, self.backbone.head(3), self.tensors)


CASES: Mapping[str, type[ReferencedCase]] = {
    "dense": DenseCase,
    "output": OutputCase,
    "hidden states": HiddenCase,
}
MOVED = {"hidden states": 0.3}
"""How far tensors are moved, which of tokens and edits shows less."""


def referenced_case(backbone: Backbone, case: Configuration) -> ReferencedCase:
    """A lane of one method, moved from where it starts, by the form of its reference."""
    form = form_of(case.groups[0].method)
    assert form, f"{case.groups[0].method} has no reference: see tests/methods/references"
    return CASES[form].of(backbone, case, moved=MOVED.get(form, 0.1))
