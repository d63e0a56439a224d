"""A backbone whose linear maps are replaced by dense ones, run as transformers runs it.

Nothing of lanes, operators or packs takes part, so that it can be what those are held against.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers.activations import ACT2FN

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.training.batches import Batch

Maps = Mapping[tuple[int, str], tuple[Tensor, Tensor | None]]
"""W [d_in, d_out] and b [d_out] by layer and role; of a norm, its scale and shift."""


def frozen_maps(backbone: Backbone) -> dict[tuple[int, str], tuple[Tensor, Tensor | None]]:
    """All linear sites and norms as they are, in the model's own type."""
    linear = {
        (layer.index, role): _sliced(backbone, layer.index, role)
        for layer in backbone.anatomy.layers
        for role in layer.sites
    }
    norms = {
        (layer.index, role): _norm(backbone.model.get_submodule(norm.module))
        for layer in backbone.anatomy.layers
        for role, norm in layer.norms.items()
    }
    return linear | norms


def module_of(anatomy: Anatomy, layer: int, site: str) -> str:
    """The module that holds a linear site or a norm."""
    norm = anatomy.layers[layer].norms.get(site)
    return anatomy.site(layer, site).module if norm is None else norm.module


def _norm(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    bias = getattr(module, "bias", None)
    return module.weight.detach(), None if bias is None else bias.detach()


def _sliced(backbone: Backbone, layer: int, role: str) -> tuple[Tensor, Tensor | None]:
    site = backbone.anatomy.site(layer, role)
    module = backbone.model.get_submodule(site.module)
    whole = module.weight if site.transposed else module.weight.T
    own = slice(site.start, site.start + site.out_features)
    return whole[:, own].detach(), None if module.bias is None else module.bias[own].detach()


def logits_of(
    backbone: Backbone, maps: Maps, batch: Batch, recipe: HeadRecipe, head: Mapping[str, Tensor]
) -> Tensor:
    """What a task head makes of the backbone with some maps replaced, [B, n_outputs].

    Args:
        backbone: Left as it is.
        maps: The sites that change. Gradients flow back to them.
        batch: Rows.
        recipe: The head.
        head: Its tensors by a lane's saved names.
    """
    replaced: dict[str, Tensor] = {}
    for (layer, role), (weight, bias) in maps.items():
        holder = module_of(backbone.anatomy, layer, role)
        module, own = backbone.model.get_submodule(holder), slice(None)
        if weight.dim() == 1:
            replaced[f"{holder}.weight"] = weight
        else:
            site = backbone.anatomy.site(layer, role)
            name, own = f"{holder}.weight", slice(site.start, site.start + site.out_features)
            whole = replaced.get(name, module.weight.detach()).clone()
            whole[(slice(None), own) if site.transposed else (own, slice(None))] = (
                weight if site.transposed else weight.T
            )
            replaced[name] = whole
        if bias is None:
            continue
        name, there = f"{holder}.bias", getattr(module, "bias", None)
        kept = weight.new_zeros(_width(module)) if there is None else there.detach()
        vector = replaced.get(name, kept).clone()
        vector[own] = bias
        replaced[name] = vector
    with _extra_biases(backbone, replaced):
        out = functional_call(backbone.model, replaced, (), dict(batch.inputs))
    return head_logits(out, batch, recipe, head)


def _width(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.nf if hasattr(module, "nf") else len(module.weight)


@contextmanager
def _extra_biases(backbone: Backbone, replaced: dict[str, Tensor]) -> Iterator[None]:
    """Biases of modules that have none are taken out of `replaced`, and added by hooks."""
    handles = []
    for name in [name for name in replaced if name.endswith(".bias")]:
        module = backbone.model.get_submodule(name.removesuffix(".bias"))
        if getattr(module, "bias", None) is None:
            bias = replaced.pop(name)
            handles.append(module.register_forward_hook(lambda m, x, y, bias=bias: y + bias))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def head_logits(
    out: object, batch: Batch, recipe: HeadRecipe, head: Mapping[str, Tensor]
) -> Tensor:
    """What a task head makes of a base model's output, [B, n_outputs]."""
    if recipe.pool == "pooler":
        x = out.pooler_output  # type: ignore[attr-defined]
    else:
        hidden = out.last_hidden_state  # type: ignore[attr-defined]
        x = _pooled(hidden, batch.mask.to(hidden.dtype), recipe.pool)
    for index, step in enumerate(recipe.steps):
        x = x @ head[f"head.{index}_weight"]
        x = x + head[f"head.{index}_bias"] if step.bias else x
        x = x if step.activation == "none" else ACT2FN[step.activation](x)
        if step.norm is not None:
            scale = head[f"head.{index}_norm_weight"]
            shift = head[f"head.{index}_norm_bias"] if step.norm.bias else None
            x = functional.layer_norm(x, x.shape[-1:], scale, shift, step.norm.eps)
    return x


def _pooled(hidden: Tensor, mask: Tensor, pool: str) -> Tensor:
    if pool == "mean":
        return (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
    rows = torch.arange(len(hidden))
    at = mask.sum(1).long() - 1 if pool == "last" else torch.zeros(len(hidden)).long()
    return hidden[rows, at]
