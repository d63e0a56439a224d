"""OFT as a dense block-diagonal R of inverted matrices, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import OFTConfig
from torch import Tensor, nn


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """R W with R_i = (I - Q_i) (I + Q_i)^-1."""
    size, one = settings["block_size"], torch.eye(settings["block_size"], dtype=torch.float64)
    blocks = []
    above = [(row, column) for row in range(size) for column in range(row + 1, size)]
    rows, columns = (torch.tensor(index) for index in zip(*above, strict=True))
    for upper in tensors["Q"]:
        q = torch.zeros(size, size, dtype=torch.float64).index_put((rows, columns), upper)
        q = q - q.T
        blocks.append((one - q) @ torch.linalg.inv(one + q))
    if settings["share"]:
        blocks = blocks * (weight.shape[0] // size)
    return torch.block_diag(*blocks) @ weight, bias


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> OFTConfig:
    """HF peft's, without its series."""
    return OFTConfig(
        r=0,
        oft_block_size=settings["block_size"],
        block_share=settings["share"],
        use_cayley_neumann=False,
        target_modules=modules,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.oft_R["default"].weight.data.copy_(tensors["Q"])
