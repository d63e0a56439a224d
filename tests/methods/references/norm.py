"""Norm tuning as it is: another scale and shift, in float64."""

from collections.abc import Mapping
from typing import Any

from peft import LNTuningConfig
from torch import Tensor, nn

PEFT_ARCHITECTURES = ("bert",)
"""HF peft gives an RMSNorm no shift."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """w + dw, and b + db."""
    if settings["bias"]:
        bias = tensors["shift"] if bias is None else bias + tensors["shift"]
    return weight + tensors["scale"], bias


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> LNTuningConfig:
    """HF peft's."""
    return LNTuningConfig(target_modules=modules)


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    own = module.ln_tuning_layers["default"]
    own.weight.data.add_(tensors["scale"])
    if settings["bias"]:
        own.bias.data.add_(tensors["shift"])
    else:
        own.bias.requires_grad_(False)
