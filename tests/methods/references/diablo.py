"""DiaBlo as a padded sum of blocks, in float64."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W plus every block at its place."""
    n = min(weight.shape) // settings["side"]
    rows, columns = (width // n for width in weight.shape)
    for i, block in enumerate(tensors["blocks"]):
        left, above = i * columns, i * rows
        right, below = weight.shape[1] - left - columns, weight.shape[0] - above - rows
        weight = weight + functional.pad(block, (left, right, above, below))
    return weight, bias
