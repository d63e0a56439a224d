"""SVFT as dense matrices from numpy's SVD, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy_svd import svd_of
from torch import Tensor

MATRICES = ("values",)
"""Weights of a map, though of one axis."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + (U g M V^T)^T."""
    u, _, v = svd_of(weight)
    n, bands, values = u.shape[1], settings["bands"], tensors["values"]
    if settings["pattern"] == "plain":
        at = [(i, i) for i in range(n)]
    elif settings["pattern"] == "banded":
        at = [(i, i + o) for o in range(1 - bands, bands) for i in range(n) if 0 <= i + o < n]
    else:
        at = [divmod(int(flat), n) for flat in tensors["index"]]
    if settings["pattern"] == "top_k":
        rank = (u.T @ v).abs().ravel().sort(descending=True).values
        chosen = torch.stack([(u.T @ v).abs()[i, j] for i, j in at])
        assert float(chosen.min()) == float(rank[len(at) - 1])
    rows, columns = (torch.tensor(index) for index in zip(*at, strict=True))
    m = torch.zeros(n, n, dtype=torch.float64).index_put((rows, columns), values)
    gate = 1.0 / (1.0 + torch.exp(-tensors["gate"]))
    return weight + (u @ (gate * m) @ v.T).T, bias
