"""Comp-LoRA with projections formed from the weight's Gram matrices, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + (alpha / r) Q A B P."""
    values = torch.linalg.svdvals(weight)
    held, k = 0.0, 0
    while settings["energy"] > 0 and held < settings["energy"] * float((values**2).sum()):
        held += float(values[k] ** 2)
        k += 1
    k = min(k, len(values) - 1)
    change = settings["alpha"] / settings["rank"] * tensors["A"] @ tensors["B"]
    if settings["side"] in ("both", "input"):
        change = _complement(weight @ weight.T, k) @ change
    if settings["side"] in ("both", "output"):
        change = change @ _complement(weight.T @ weight, k)
    return weight + change, bias


def _complement(gram: Tensor, k: int) -> Tensor:
    """I less the projection on the k leading eigenvectors."""
    _, vectors = torch.linalg.eigh(gram)
    main = vectors[:, len(gram) - k :]
    return torch.eye(len(gram), dtype=gram.dtype) - main @ main.T
