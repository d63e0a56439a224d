"""KRAdapter entry by entry, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W plus scale K, K's rows Kronecker products cut to the longer side."""
    rows = [torch.kron(v, u) for v, u in zip(tensors["V"], tensors["U"], strict=True)]
    k = torch.stack(rows)[:, : max(weight.shape)]
    if weight.shape[1] <= weight.shape[0]:  # outputs are the shorter side
        k = k.T
    return weight + settings["scale"] * k, bias
