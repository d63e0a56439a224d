"""WaveFT with Haar's matrices, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import WaveFTConfig
from torch import Tensor, nn

MATRICES = ("values",)
"""Weights of a map, though of one axis."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W plus (H^T C H)^T, C the coefficients and H Haar's orthogonal matrices.

    Two quarters of C are where HF peft has the other's.
    """
    d_in, d_out = weight.shape
    flat = torch.zeros(d_out * d_in, dtype=torch.float64)
    coefficients = flat.index_put((tensors["index"],), tensors["values"]).view(d_out, d_in)
    means, rows, columns, both = (
        part for half in coefficients.chunk(2, 0) for part in half.chunk(2, 1)
    )
    coefficients = torch.cat([torch.cat([means, columns], 1), torch.cat([rows, both], 1)])
    change = _haar(d_out).T @ coefficients @ _haar(d_in)
    return weight + settings["scale"] * change.T, bias


def _haar(n: int) -> Tensor:
    """Means of pairs in the upper half of the rows, differences in the lower; orthogonal."""
    one, root = torch.eye(n, dtype=torch.float64), 2.0**-0.5
    pairs = [(one[2 * i], one[2 * i + 1]) for i in range(n // 2)]
    return torch.stack([root * (a + b) for a, b in pairs] + [root * (a - b) for a, b in pairs])


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> WaveFTConfig:
    """HF peft's."""
    return WaveFTConfig(
        n_frequency=settings["coefficients"],
        scaling=settings["scale"],
        wavelet_family="db1",
        target_modules=modules,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    index = tensors["index"]
    places = torch.stack([index // module.in_features, index % module.in_features])
    module.waveft_indices["default"] = places
    module.waveft_spectrum["default"].data.copy_(tensors["values"])
