"""DePT position by position, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def before(settings: Mapping[str, Any], own: Mapping[str, Tensor]) -> Tensor:
    """The prompt [P, d], in the order of reading."""
    return own["tokens"].flip(0)


def at_input(
    settings: Mapping[str, Any], own: Mapping[str, Tensor], h: Tensor, mask: Tensor
) -> Tensor:
    """Token t plus (alpha / sqrt r) A_t B."""
    scale = settings["alpha"] / settings["rank"] ** 0.5
    changed = []
    for token in range(h.shape[1]):
        known = token < settings["positions"]
        change = scale * own["A"][token] @ own["B"] if known else 0.0
        changed.append(h[:, token] + change)
    return torch.stack(changed, dim=1)


def rate(settings: Mapping[str, Any], name: str) -> float:
    """The prompt's is its own."""
    return settings["prompt_rate"] if name == "tokens" else 1.0
