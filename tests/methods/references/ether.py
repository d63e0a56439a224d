"""ETHER as dense Householder matrices, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """diag(I - 2 u u^T / u^T u) W."""
    size = weight.shape[0] // settings["blocks"]
    one = torch.eye(size, dtype=torch.float64)
    blocks = [one - 2.0 * torch.outer(u, u) / (u @ u) for u in tensors["u"]]
    return torch.block_diag(*blocks) @ weight, bias
