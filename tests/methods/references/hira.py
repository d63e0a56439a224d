"""HiRA with its change formed, in float64."""

from collections.abc import Mapping
from typing import Any

from peft import HiraConfig
from torch import Tensor, nn


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + W * (A B), as a sum over ranks."""
    a, b = tensors["A"], tensors["B"]
    changes = (weight * a[:, i, None] * b[None, i] for i in range(settings["rank"]))
    return weight + sum(changes), bias


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> HiraConfig:
    """HF peft's."""
    return HiraConfig(r=settings["rank"], target_modules=modules)


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.hira_A["default"].data.copy_(tensors["A"].T)
    module.hira_B["default"].data.copy_(tensors["B"].T)
