"""The serial adapter in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACT = {"relu": torch.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


def bottleneck(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """What an adapter makes of z, its trained scale within it."""
    inner = functional.linear(z, tensors["down"].T, tensors["down_bias"])
    made = functional.linear(
        ACT[settings["activation"]](inner), tensors["up"].T, tensors["up_bias"]
    )
    return settings["scale"] * made * tensors.get("learned_scale", 1.0)


def output(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """The sub-layer's output and what the adapter makes of it."""
    return y + bottleneck(settings, tensors, y)
