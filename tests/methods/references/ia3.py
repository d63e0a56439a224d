"""(IA)^3 as diagonal matrices, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import IA3Config
from torch import Tensor, nn


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """diag(l) W at `down`, else W diag(l) and b diag(l)."""
    scale = torch.diag(1.0 + tensors["change"])
    if settings["site"] == "down":
        return scale @ weight, bias
    return weight @ scale, None if bias is None else bias @ scale


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> IA3Config:
    """HF peft's."""
    inner = [
        name
        for name in modules
        if name.endswith(("output.dense", "down_proj")) and "attention" not in name
    ]
    return IA3Config(target_modules=modules, feedforward_modules=inner)


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    vector = module.ia3_l["default"].data
    vector.copy_((1.0 + tensors["change"]).view_as(vector))
