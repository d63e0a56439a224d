"""VeRA with its change formed, in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from peft import VeraConfig
from torch import Tensor, nn

PEFT_SITES = ("query", "output")
"""HF peft's matrices have the scale of the widest site, ours each its own: sites of one width."""


def _frozen(rank: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """A [r, d_in] and B [d_out, r], kaiming-uniform of the fixed stream."""
    a = [np.random.RandomState([20231017, i]).uniform(-1.0, 1.0, 256)[:d_in] for i in range(rank)]
    b = [np.random.RandomState([11454, i]).uniform(-1.0, 1.0, 256)[:d_out] for i in range(rank)]
    rows, columns = torch.tensor(np.array(a)), torch.tensor(np.array(b)).T
    return rows * (6.0 / d_in) ** 0.5, columns * (6.0 / rank) ** 0.5


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + (diag(b) B diag(d) A)^T."""
    a, b = _frozen(settings["rank"], *weight.shape)
    change = torch.diag(tensors["b"]) @ b @ torch.diag(tensors["d"]) @ a
    return weight + change.T, bias


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> VeraConfig:
    """HF peft's."""
    return VeraConfig(r=settings["rank"], target_modules=modules)


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    a, b = _frozen(settings["rank"], module.in_features, module.out_features)
    module.vera_A["default"].data = a
    module.vera_B["default"].data = b
    module.vera_lambda_d["default"].data.copy_(tensors["d"])
    module.vera_lambda_b["default"].data.copy_(tensors["b"])
