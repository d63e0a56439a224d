"""A bottleneck after or beside a linear map, row by row of D and U, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACT = {"relu": torch.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


def output(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """y and what every hidden unit adds."""
    read = y if settings["form"] == "series" else x
    total = y
    for column, row in zip(tensors["down"].T, tensors["up"], strict=True):
        unit = ACT[settings["activation"]](functional.linear(read, column[None]))
        total = total + settings["scale"] * unit * row
    return total
