"""LoRA, rsLoRA and DoRA with their changes formed, in float64."""

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn

STOPPED = ("dora",)
"""Where the gradient is not the loss's slope, by the paper: it takes the lengths as constants."""


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W + s A B; with DoRA, each column as long as was trained."""
    rank = settings["rank"]
    scale = settings["alpha"] / (rank**0.5 if settings.get("rank_stabilised") else rank)
    changed = weight + scale * tensors["A"] @ tensors["B"]
    if not settings.get("dora"):
        return changed, bias
    lengths = weight.square().sum(0).sqrt() + tensors["magnitude"]
    return lengths * changed / changed.square().sum(0).sqrt().detach(), bias


def peft_config(settings: Mapping[str, Any], modules: list[str]) -> LoraConfig:
    """HF peft's."""
    return LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        use_rslora=settings.get("rank_stabilised", False),
        use_dora=settings.get("dora", False),
        target_modules=modules,
    )


def fill(module: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A lane's tensors in HF peft's layer."""
    module.lora_A["default"].weight.data.copy_(tensors["A"].T)
    module.lora_B["default"].weight.data.copy_(tensors["B"].T)
    if settings.get("dora"):
        lengths = module.base_layer.weight.norm(dim=1) + tensors["magnitude"]
        module.lora_magnitude_vector["default"].weight.data.copy_(lengths)
