"""SVFT as dense matrices from numpy's SVD, in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def svd_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [d_out, n], S [n] and V [d_in, n] of W^T; V's largest entries are positive."""
    left, values, right = np.linalg.svd(weight.detach().numpy().T, full_matrices=False)
    v, u = right.T.copy(), left.copy()
    for column in range(v.shape[1]):
        if v[np.abs(v[:, column]).argmax(), column] < 0.0:
            v[:, column] *= -1.0
            u[:, column] *= -1.0
    return torch.from_numpy(u), torch.from_numpy(values.copy()), torch.from_numpy(v)


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + (U g M V^T)^T."""
    u, _, v = svd_of(weight)
    n, bands, values = u.shape[1], settings["bands"], tensors["values"]
    if settings["pattern"] == "banded":
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
