"""Adapter+ behind a layer, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACT = {"relu": torch.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


def at_output(
    settings: Mapping[str, Any], own: Mapping[str, Tensor], h: Tensor, mask: Tensor
) -> Tensor:
    """h and what the adapter makes of it, scaled channel by channel or by one number."""
    inner = functional.linear(h, own["down"].T, own["down_bias"])
    made = functional.linear(ACT[settings["activation"]](inner), own["up"].T, own["up_bias"])
    return h + own.get("learned_scale", 1.0) * made
