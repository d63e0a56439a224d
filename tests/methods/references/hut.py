"""HUT with its factor on W formed, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import HiraConfig
from torch import Tensor, nn


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W * (1 + (alpha / r) A B)."""
    low_rank = torch.einsum("ir,rj->ij", tensors["A"], tensors["B"])
    return weight * (1.0 + settings["alpha"] / settings["rank"] * low_rank), bias


PEFT_GIVEN = {"alpha": 3.0}
"""Its factor is 1 then, at the rank that is tried: HIRA has none, so that steps are alike."""


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> HiraConfig:
    """HF peft's HIRA."""
    if settings["alpha"] != settings["rank"]:
        raise ValueError(f"alpha {settings['alpha']} of rank {settings['rank']}")
    return HiraConfig(r=settings["rank"], target_modules=modules)


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.hira_A["default"].data.copy_(tensors["A"].T)
    module.hira_B["default"].data.copy_(tensors["B"].T)
