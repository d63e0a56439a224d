"""KaSA as dense matrices from numpy's SVD, in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora.config import KasaConfig
from torch import Tensor, nn

PEFT_WITHIN = 1e-5
"""peft takes its SVD in float32."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The strongest n - r components composed again, and B diag(s) A beside them."""
    left, values, right = np.linalg.svd(weight.detach().numpy().T, full_matrices=False)
    kept = len(values) - settings["rank"]
    strong = torch.from_numpy((left[:, :kept] * values[:kept]) @ right[:kept]).T
    update = tensors["A"] @ torch.diag(tensors["s"]) @ tensors["B"]
    return strong + settings["alpha"] / settings["rank"] * update, bias


def auxiliary(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """What one map adds to the loss."""
    a, s, b = tensors["A"], tensors["s"], tensors["B"]
    one = torch.eye(len(s), dtype=torch.float64)
    apart = ((b @ b.T - one) ** 2).sum().sqrt() + ((a.T @ a - one) ** 2).sum().sqrt()
    return settings["beta"] * (s @ s) + settings["gamma"] * apart


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> LoraConfig:
    """HF peft's."""
    return LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        kasa_config=KasaConfig(beta=settings["beta"], gamma=settings["gamma"]),
        target_modules=modules,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.lora_A["default"].weight.data.copy_(tensors["A"].T)
    module.lora_B["default"].weight.data.copy_(tensors["B"].T)
    module.lora_diag["default"].data.copy_(tensors["s"])
