"""Prompt tokens as they stand before the text; the first one last in a lane's tensor."""

from collections.abc import Callable, Mapping
from typing import Any

from peft import PromptTuningConfig
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy

Turn = Callable[[Tensor], Tensor]
"""Keys [P, n_kv_heads w] as they are P positions further on."""


def before(settings: Mapping[str, Any], own: Mapping[str, Tensor]) -> Tensor:
    """[P, d], in the order of reading."""
    return own["tokens"].flip(0)


def peft_config(settings: Mapping[str, Any], anatomy: Anatomy) -> PromptTuningConfig:
    """HF peft's."""
    return PromptTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=settings["length"]
    )


def encoded(
    settings: Mapping[str, Any], tensors: Mapping[int, Mapping[str, Tensor]], turn: Turn
) -> Tensor:
    """The table of HF peft's encoder."""
    return before(settings, tensors[0])
