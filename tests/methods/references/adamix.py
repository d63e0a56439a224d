"""AdaMix once its experts are averaged, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACT = {"relu": torch.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


def expert(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], y: Tensor, down: int, up: int
) -> Tensor:
    """The sub-layer's output and what one expert's maps make of it."""
    inner = y @ tensors["down"][down] + tensors["down_bias"][down]
    made = ACT[settings["activation"]](inner) @ tensors["up"][up] + tensors["up_bias"][up]
    return y + made


def output(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """The same with the sum of all experts' maps over their number."""
    mean = {name: (sum(each) / len(each))[None] for name, each in tensors.items()}
    return expert(settings, mean, y, 0, 0)
