"""BOFT as dense rotations of chosen channels, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import BOFTConfig
from peft.tuners.boft import layer
from torch import Tensor, nn

PEFT_LACKS = ("factors",)
"""More than one, where it has no compiler for GPUs."""
PEFT_WITHIN = 1e-6
"""Its gradient is spread over two entries, beside which Adam's epsilon weighs more."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """B_m ... B_1 W diag(s), every block of a factor put where its channels are."""
    size, width = settings["block_size"], weight.shape[0]
    rotation = torch.eye(width, dtype=torch.float64)
    for factor in range(settings["factors"]):
        whole = torch.eye(width, dtype=torch.float64)
        for block, channels in enumerate(_channels(width, size, factor)):
            own = _rotation(tensors["Q"][factor, block], size)
            at = torch.tensor(channels)
            rows = at[:, None].expand(size, size), at[None].expand(size, size)
            whole = whole.index_put(rows, own)
        rotation = whole @ rotation
    return rotation @ weight * tensors["s"], bias


def _channels(width: int, size: int, factor: int) -> list[list[int]]:
    """Which channels each block of a factor rotates: two runs, 2^(i - 2) b apart from i = 2 on."""
    half, distance = size // 2, (size << factor) // 2
    blocks = []
    for segment in range(0, width, 2 * distance):
        for run in range(segment, segment + distance, half):
            blocks.append([*range(run, run + half), *range(run + distance, run + distance + half)])
    return blocks


def _rotation(upper: Tensor, size: int) -> Tensor:
    above = [(row, column) for row in range(size) for column in range(row + 1, size)]
    rows, columns = (torch.tensor(index) for index in zip(*above, strict=True))
    q = torch.zeros(size, size, dtype=torch.float64).index_put((rows, columns), upper)
    q, one = q - q.T, torch.eye(size, dtype=torch.float64)
    return (one - q) @ torch.linalg.inv(one + q)


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> BOFTConfig:
    """HF peft's, which would compile an extension for GPUs where it may."""
    layer._FBD_CUDA = False
    return BOFTConfig(
        boft_block_size=settings["block_size"],
        boft_block_num=0,
        boft_n_butterfly_factor=settings["factors"],
        target_modules=modules,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    size = settings["block_size"]
    rows, columns = torch.triu_indices(size, size, 1)
    upper = torch.zeros_like(module.boft_R["default"].data)
    upper[..., rows, columns] = tensors["Q"].detach()
    module.boft_R["default"].data.copy_(upper - upper.transpose(-2, -1))
    module.boft_s["default"].data.copy_(tensors["s"].unsqueeze(1))
