"""MSPLoRA as a sum of three dense products, in float64."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + alpha / r A B of every scale, with r its own."""
    assert {n.partition("_")[2] for n in tensors} == {"global", "middle", "local"}
    ranks = []
    for scale in ("global", "middle", "local"):
        a, b = tensors[f"A_{scale}"], tensors[f"B_{scale}"]
        ranks.append(a.shape[1])
        weight = weight + settings["alpha"] / a.shape[1] * (a @ b)
    assert ranks == [4 * settings["rank"], 2 * settings["rank"], settings["rank"]]
    return weight, bias
