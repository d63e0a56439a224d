"""SNELL as a dense matrix of distances, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STOPPED = ("sparsity",)
"""The threshold moves with the weights, and gradients leave it out: they are not the slope."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + S(D)."""
    d = torch.zeros_like(weight)
    for kernel, c in ((0, 0.1), (1, -0.1)):
        apart = tensors["inputs"][kernel][:, None] - tensors["outputs"][kernel][None]
        d = d + c * (apart**2).sum(-1).sqrt()
    ranked = d.detach().abs().ravel().sort().values
    dropped = round(settings["sparsity"] * len(ranked))
    if not dropped:
        return weight + d, bias
    kept = d.abs() > ranked[dropped - 1]
    assert int(kept.sum()) == len(ranked) - dropped
    return weight + torch.where(kept, d - d.sign() * ranked[dropped - 1], 0.0), bias
