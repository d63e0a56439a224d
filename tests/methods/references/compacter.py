"""Compacter with numpy's idea of a Kronecker product, component by component, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACT = {"relu": torch.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


def output(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """The sub-layer's output and what the adapter makes of it."""
    maps = {}
    for name in ("down", "up"):
        left, right = tensors[f"{name}_left"], tensors[f"{name}_right"]
        parts = zip(tensors["rule"], left, right, strict=True)
        maps[name] = sum(torch.kron(rule, s @ t) for rule, s, t in parts)
    inner = ACT[settings["activation"]](y @ maps["down"] + tensors["down_bias"])
    return y + inner @ maps["up"] + tensors["up_bias"]
