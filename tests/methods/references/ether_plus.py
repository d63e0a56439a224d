"""ETHER+ as dense block-diagonal matrices, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """H W, or H W H'."""
    weight = _relaxed(tensors["u"], tensors["v"]) @ weight
    if settings["both_sides"]:
        weight = weight @ _relaxed(tensors["u_out"], tensors["v_out"])
    return weight, bias


def _relaxed(us: Tensor, vs: Tensor) -> Tensor:
    one = torch.eye(us.shape[1], dtype=torch.float64)
    blocks = [
        one - torch.outer(u, u) / (u @ u) + torch.outer(v, v) / (v @ v)
        for u, v in zip(us, vs, strict=True)
    ]
    return torch.block_diag(*blocks)
