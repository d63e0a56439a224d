"""LoRETTA's trains contracted in one sum, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + (alpha / m) A B."""
    m = settings["bottleneck"]
    a = matrix([t for name, t in sorted(tensors.items()) if name.startswith("A_")], m, last=True)
    b = matrix([t for name, t in sorted(tensors.items()) if name.startswith("B_")], m, last=False)
    return weight + settings["alpha"] / m * a @ b, bias


def matrix(cores: list[Tensor], bottleneck: int, *, last: bool) -> Tensor:
    """One sum over all inner indices: a, b, c, ... between the cores, A, B, C, ... their own."""
    inner, own = "abcdefghij", "ABCDEFGHIJ"
    terms = ",".join(f"{inner[j]}{own[j]}{inner[j + 1]}" for j in range(len(cores)))
    flat = torch.einsum(f"{terms}->{own[: len(cores)]}", *cores).flatten()
    return flat.view(-1, bottleneck) if last else flat.view(bottleneck, -1)
