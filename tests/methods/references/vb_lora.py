"""VB-LoRA's factors part by part, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import VBLoRAConfig
from torch import Tensor, nn

PEFT_LACKS = ("settled",)
"""HF peft trains all logits."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + A B, every part a weighed sum of chosen vectors."""
    rank, length = settings["rank"], settings["length"]
    inputs, outputs = (range(width // length) for width in weight.shape)
    a = [[_part("A", (q, i), settings, tensors) for i in inputs] for q in range(rank)]
    b = [[_part("B", (i, q), settings, tensors) for i in outputs] for q in range(rank)]
    changes = (torch.outer(torch.cat(x), torch.cat(y)) for x, y in zip(a, b, strict=True))
    return weight + sum(changes), bias


def _part(
    name: str, at: tuple[int, int], settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Tensor:
    logits = tensors[f"logits_{name}"][at]
    if settings["settled"]:
        numbers = tensors[f"index_{name}"][at].tolist()
    else:
        order = sorted(range(len(logits)), key=lambda i: -float(logits[i].detach()))
        numbers = order[: settings["chosen"]]
        logits = logits[numbers]
    weights = logits.exp() / logits.exp().sum()
    return sum(w * tensors["bank"][i] for w, i in zip(weights, numbers, strict=True))


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> VBLoRAConfig:
    """HF peft's."""
    return VBLoRAConfig(
        r=settings["rank"],
        num_vectors=settings["vectors"],
        vector_length=settings["length"],
        topk=settings["chosen"],
        target_modules=modules,
        vblora_dropout=0.0,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.vblora_logits_A["default"].data.copy_(tensors["logits_A"])
    module.vblora_logits_B["default"].data.copy_(tensors["logits_B"])
    module.vblora_vector_bank["default"].data.copy_(tensors["bank"])
