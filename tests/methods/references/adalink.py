"""AdaLink as it is, in float64."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu, relu, silu

ACTIVATIONS = {"none": lambda x: x, "relu": relu, "gelu": gelu, "silu": silu, "tanh": Tensor.tanh}


def at_input(
    settings: Mapping[str, Any], own: Mapping[str, Tensor], h: Tensor, mask: Tensor
) -> Tensor:
    """e + act(e D) U."""
    return h + ACTIVATIONS[settings["activation"]](h @ own["down"]) @ own["up"]
