"""PSOFT as dense matrices from numpy's SVD, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy_svd import svd_of
from peft import PsoftConfig
from torch import Tensor, nn

PEFT_WITHIN, PEFT_DTYPE = 1e-5, torch.float32
"""peft takes its SVD in float32, and of nothing longer."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The strongest r components with a rotation between them, and the others as they were."""
    u, s, v = svd_of(weight)
    rank, one = settings["rank"], torch.eye(settings["rank"], dtype=torch.float64)
    above = [(row, column) for row in range(rank) for column in range(row + 1, rank)]
    rows, columns = (torch.tensor(index) for index in zip(*above, strict=True))
    q = torch.zeros(rank, rank, dtype=torch.float64).index_put((rows, columns), tensors["Q"])
    q = q - q.T
    rotation = (one - q) @ torch.linalg.inv(one + q)
    if settings["lengths"]:
        rotation = torch.diag(tensors["a"]) @ rotation @ torch.diag(tensors["b"])
    principal = v[:, :rank] @ rotation @ torch.diag(s[:rank]) @ u[:, :rank].T
    return principal + v[:, rank:] @ torch.diag(s[rank:]) @ u[:, rank:].T, bias


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> PsoftConfig:
    """HF peft's, without its series."""
    return PsoftConfig(
        r=settings["rank"],
        psoft_mag_a=settings["lengths"],
        psoft_mag_b=settings["lengths"],
        use_cayley_neumann=False,
        target_modules=modules,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer, whose singular vectors have signs of their own."""
    own = module._psoft_A_cache["default"]
    signs = own.gather(1, own.abs().argmax(1, keepdim=True)).sign().squeeze(1).double()
    rows, columns = torch.triu_indices(settings["rank"], settings["rank"], 1)
    held = module.psoft_R["default"]
    held.weight.data.copy_(tensors["Q"] * signs[rows] * signs[columns])
    if settings["lengths"]:
        held.vector_a.data.copy_(tensors["a"])
        held.vector_b.data.copy_(tensors["b"])
