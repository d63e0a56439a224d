"""RoAd as a dense R, entry by entry, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import RoadConfig
from torch import Tensor, nn


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W R^T and R b; the 2 x 2 matrix of each pair is written out."""
    d_out, width, variant = weight.shape[1], settings["group_size"], settings["variant"]
    theta, alpha = tensors["theta"], tensors["alpha"]
    rows, one = [], torch.eye(d_out, dtype=torch.float64)
    for output in range(d_out):
        group, inside = divmod(output, width)
        first = inside < width // 2
        partner = output + width // 2 if first else output - width // 2
        if variant == 1:
            own = across = group * (width // 2) + inside % (width // 2)
        elif variant == 2:
            own = across = output
        else:
            own = group * 2 * width + inside
            across = own + width
        row = one[output] * alpha[own] * theta[own].cos()
        sign = -1.0 if first else 1.0
        rows.append(row + sign * one[partner] * alpha[across] * theta[across].sin())
    r = torch.stack(rows)
    return weight @ r.T, None if bias is None else r @ bias


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> RoadConfig:
    """HF peft's."""
    return RoadConfig(
        variant=f"road_{settings['variant']}",
        group_size=settings["group_size"],
        target_modules=modules,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.road_theta["default"].data.copy_(tensors["theta"])
    module.road_alpha["default"].data.copy_(tensors["alpha"])
