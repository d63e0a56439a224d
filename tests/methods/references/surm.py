"""SURM's matrices entry by entry, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MATRICES = ("a", "b", "kernel")
"""Weights of a map, though of one axis."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W plus the transpose of scale M."""
    structure, n = settings["structure"], weight.shape[0]
    if structure == "circulant":
        kernel = tensors["a"] * tensors["b"] if settings["factored"] else tensors["kernel"]
        m = _around(kernel, n)
    elif structure == "toeplitz":
        m = _symmetric(tensors["b"], n) @ _symmetric(tensors["a"], n)
    elif structure == "ldr":
        pairs = zip(tensors["c"], tensors["d"], strict=True)
        m = sum(_around(c, n) @ _around(d, n, sign=-1.0) for c, d in pairs)
    else:
        m = torch.kron(tensors["A"], tensors["B"])
    return weight + settings["scale"] * m.T, bias


def _around(v: Tensor, n: int, sign: float = 1.0) -> Tensor:
    """Entries v_(i - j), those that wrap around with a sign."""
    places = torch.tensor([[(i - j) % n for j in range(n)] for i in range(n)])
    signs = torch.tensor([[1.0 if i >= j else sign for j in range(n)] for i in range(n)])
    return v[places] * signs


def _symmetric(v: Tensor, n: int) -> Tensor:
    return v[torch.tensor([[abs(i - j) for j in range(n)] for i in range(n)])]
