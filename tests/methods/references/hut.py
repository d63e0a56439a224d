"""HUT with its factor on W formed, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W * (1 + (alpha / r) A B)."""
    low_rank = torch.einsum("ir,rj->ij", tensors["A"], tensors["B"])
    return weight * (1.0 + settings["alpha"] / settings["rank"] * low_rank), bias
