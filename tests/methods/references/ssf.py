"""SSF as a diagonal matrix and a bias, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W diag(1 + g), and b diag(1 + g) plus the shift."""
    scale = torch.diag(1.0 + tensors["scale"])
    shifted = tensors["shift"] if bias is None else bias @ scale + tensors["shift"]
    return weight @ scale, shifted
