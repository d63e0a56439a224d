"""Sparse fine-tuning as a sum of products with unit vectors, in float64."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import ShiraConfig
from torch import Tensor, nn

MATRICES = ("values",)
"""Weights of a map, though of one axis."""
PEFT_LACKS = ("granularity",)
"""HF peft trains single weights."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W plus the values at chosen weights, rows, columns or blocks; heads are several lines."""
    values, index = tensors["values"], tensors["index"].tolist()
    units, (d_in, d_out) = settings["granularity"], weight.shape
    if units == "weight":
        rows, columns = zip(*(divmod(number, d_out) for number in index), strict=True)
        change = _at(rows, d_in) @ torch.diag(values) @ _at(columns, d_out).T
    elif units == "block":
        side = settings["block"]
        change = weight.new_zeros(weight.shape)
        for number, block in zip(index, values, strict=True):
            row, column = (side * first for first in divmod(number, d_out // side))
            rows, columns = range(row, row + side), range(column, column + side)
            change = change + _at(rows, d_in) @ block @ _at(columns, d_out).T
    elif units == "input" or (units == "head" and settings["site"] == "output"):
        change = _at(index, d_in) @ values
    else:
        change = values @ _at(index, d_out).T
    return weight + change, bias


def _at(places: Sequence[int], width: int) -> Tensor:
    """Unit vectors as columns, [width, n]."""
    return torch.eye(width, dtype=torch.float64)[:, list(places)]


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> ShiraConfig:
    """HF peft's SHiRA."""
    return ShiraConfig(r=1, target_modules=modules)


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's values and places in HF peft's layer, whose weight is [d_out, d_in]."""
    index, d_out = tensors["index"].long(), module.weight.shape[0]
    module.shira_weight["default"] = nn.Parameter(tensors["values"].detach().clone())
    module.shira_indices["default"] = torch.stack([index % d_out, index // d_out])
