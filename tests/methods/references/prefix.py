"""Keys and values before a layer's own, re-parametrised or not, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def keys_values(settings: Mapping[str, Any], own: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Each [P, n_kv_heads w]: what is trained, or two halves of tanh(E W_1 + b_1) W_2 + b_2."""
    if not settings["reparametrise"]:
        return own["keys"], own["values"]
    made = torch.tanh(own["source"] @ own["w1"] + own["b1"]) @ own["w2"] + own["b2"]
    half = made.shape[1] // 2
    return made[:, :half], made[:, half:]
