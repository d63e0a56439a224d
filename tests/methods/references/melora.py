"""MELoRA as small LoRAs, part by part, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W plus a small change for each part of the input and of the output."""
    n, scale = settings["parts"], settings["alpha"] / settings["rank"]
    rows, columns = (width // n for width in weight.shape)
    change = []
    for i in range(n):
        own = scale * tensors["A"][i] @ tensors["B"][i]
        before, after = (
            weight.new_zeros(rows, i * columns),
            weight.new_zeros(rows, (n - 1 - i) * columns),
        )
        change.append(torch.cat([before, own, after], 1))
    return weight + torch.cat(change), bias
