"""BitFit as it is: another bias, in float64."""

from collections.abc import Mapping
from typing import Any

from peft import BeftConfig
from torch import Tensor, nn


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W, and b + db."""
    return weight, tensors["bias"] if bias is None else bias + tensors["bias"]


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> BeftConfig:
    """HF peft's."""
    return BeftConfig(target_modules=modules)


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.beft_bias["default"].data.copy_(tensors["bias"].unsqueeze(0))
