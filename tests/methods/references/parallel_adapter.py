"""The parallel adapter in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACT = {"relu": torch.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


def output(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """The sub-layer's output and what the adapter makes of its input."""
    inner = ACT[settings["activation"]](x @ tensors["down"] + tensors["down_bias"])
    scale = settings["scale"] * tensors.get("learned_scale", torch.ones(1, dtype=x.dtype))
    return y + (inner @ tensors["up"] + tensors["up_bias"]) * scale
