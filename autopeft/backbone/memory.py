"""Bytes of a frozen backbone, in closed form: from its configuration, before anything is loaded.

Every tensor that stays on the device is counted: weights, quantised or not, the language model
head where it is a tensor of its own, and the buffers. What a pass computes is not.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.loading import Backbone
from autopeft.backbone.quantization import NONE, outside_layers, packed_bytes
from autopeft.backbone.request import BackboneRequest, activation_dtype
from autopeft.backbone.skeleton import skeleton


def backbone_bytes(
    source: Backbone | BackboneRequest,
    *,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
) -> int:
    """Bytes of a backbone's tensors; exact, whether or not it is loaded that way.

    Args:
        source: A loaded backbone, or a request, of which only `config.json` is read.
        dtype: Of all that is not quantised; None takes the source's own.
        quantization: `none`, `int8` or `nf4`; None takes the source's own.

    Raises:
        BackboneError: The request's configuration cannot be had or is not understood.
    """
    if isinstance(source, Backbone):
        model: Any = source.model
        dtype = dtype or model.dtype
        kind = source.quantization if quantization is None else quantization
        own = [] if source.lm_head is None else [source.lm_head.weight, source.lm_head.bias]
        known = {parameter.data_ptr() for parameter in model.parameters()}
        extra = [tensor for tensor in own if tensor is not None and tensor.data_ptr() not in known]
        anatomy = source.anatomy
    else:
        bones = skeleton(source)
        model, anatomy, extra = bones.model, bones.anatomy, []
        dtype = dtype or activation_dtype(source.dtype, bones.config)
        kind = source.quantization if quantization is None else quantization
    return _model_bytes(model, anatomy, dtype, kind) + sum(
        tensor.numel() * dtype.itemsize for tensor in extra
    )


def _model_bytes(model: nn.Module, anatomy: Anatomy, dtype: torch.dtype, kind: str) -> int:
    total = sum(
        tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize
        for tensor in _others(model, anatomy)
    )
    for linear in _layer_linears(model, anatomy):
        if kind == NONE:
            total += linear.in_features * linear.out_features * dtype.itemsize
        else:
            total += packed_bytes(kind, linear.in_features, linear.out_features)
    return total + sum(tensor.numel() * tensor.element_size() for tensor in model.buffers())


def _layer_linears(model: nn.Module, anatomy: Anatomy) -> list[nn.Linear]:
    kept = set(outside_layers(model, anatomy))
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in kept
    ]


def _others(model: nn.Module, anatomy: Anatomy) -> Iterator[Tensor]:
    """All parameters but the weights of the layers' linear maps, each once."""
    inside = {id(linear.weight) for linear in _layer_linears(model, anatomy)}
    return (parameter for parameter in model.parameters() if id(parameter) not in inside)
