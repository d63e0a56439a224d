"""Keys and values before a layer's own, re-parametrised or not, in float64."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PrefixTuningConfig
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy

Turn = Callable[[Tensor], Tensor]
"""Keys [P, n_kv_heads w] as they are P positions further on."""


def keys_values(settings: Mapping[str, Any], own: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Each [P, n_kv_heads w]: what is trained, or two halves of tanh(E W_1 + b_1) W_2 + b_2."""
    if not settings["reparametrise"]:
        return own["keys"], own["values"]
    made = torch.tanh(own["source"] @ own["w1"] + own["b1"]) @ own["w2"] + own["b2"]
    half = made.shape[1] // 2
    return made[:, :half], made[:, half:]


def peft_config(settings: Mapping[str, Any], anatomy: Anatomy) -> PrefixTuningConfig:
    """HF peft's."""
    return PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=settings["length"],
        num_layers=len(anatomy.layers),
        num_attention_heads=anatomy.n_kv_heads,
        token_dim=anatomy.n_kv_heads * anatomy.head_dim,
    )


def encoded(
    settings: Mapping[str, Any], tensors: Mapping[int, Mapping[str, Tensor]], turn: Turn
) -> Tensor:
    """The table of HF peft's encoder: the text stands behind it, and so do its queries."""
    parts = [part for layer in sorted(tensors) for part in keys_values(settings, tensors[layer])]
    return torch.cat([turn(part) if i % 2 == 0 else part for i, part in enumerate(parts)], dim=1)
