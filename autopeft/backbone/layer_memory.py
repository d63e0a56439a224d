"""What a layer's own code keeps for the backward pass, as far as architectures differ in it.

Read from module names and shapes alone, so that a model without weights tells it as well; the
activation function, which may be composed of several operations, is run on a few numbers and
asked what it keeps.
"""

import re
from collections.abc import Sequence

import torch
from torch import nn

from autopeft.backbone.anatomy import LayerMemory

_HEAD_NORM = re.compile(r"(^|\.)(q|k|query|key)_?(layer)?_?norm$")
_BEHIND = re.compile(r"(^|\.)(attention\.output\.LayerNorm|sa_layer_norm)$")
"""The norm behind attention, as BERT and all that took up its code name it, and DistilBERT."""
_ACTIVATION = re.compile(r"(^|\.)(intermediate_)?act(ivation)?(_fn|_function)?$")


def layer_memory(
    model: nn.Module, layer: nn.Module, *, hidden_size: int, fused: bool
) -> LayerMemory:
    """What one layer of a model keeps.

    Args:
        model: The base model, on any device.
        layer: Its last layer: some architectures leave the first one's norm out.
        hidden_size: Width of the residual stream.
        fused: Whether queries, keys and values are slices of one map.
    """
    named = [(name, module) for name, module in layer.named_modules() if name]
    head_norms = [name for name, _ in named if _HEAD_NORM.search(name)]
    norms = [
        name
        for name, module in named
        if "norm" in type(module).__name__.lower()
        and name not in head_norms
        and _width(module) in (None, hidden_size)
    ]
    activations = [module for name, module in named if _ACTIVATION.search(name)]
    rotates = any("rotary" in type(module).__name__.lower() for module in model.modules())
    return LayerMemory(
        norms=len(norms) or 2,
        norms_behind=any(map(_BEHIND.search, norms)),
        head_norms=bool(head_norms),
        activation=kept_by(activations[:1]),
        rotates=rotates,
        rotates_slices=fused and rotates,
        head_masks=any("relative_attention_bias" in name for name, _ in model.named_modules()),
    )


def _width(module: nn.Module) -> int | None:
    weight = getattr(module, "weight", None)
    return None if weight is None else int(weight.shape[-1])


def kept_by(activations: Sequence[nn.Module]) -> int:
    """Tensors of its input's size that an activation function keeps; 1 where there is none."""
    kept: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == _PROBED:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    for activation in activations:
        if any(True for _ in activation.parameters()):
            return 1
        given = torch.linspace(-2.0, 2.0, _PROBED, device="cpu").requires_grad_()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            result = activation(given)  # what it keeps lives as long as this
        del result
    return max(1, len(kept))


_PROBED = 7
"""Numbers that an activation function is asked about."""
