"""What the structure of a transformers model tells: linear maps, layer stacks, attention calls.

Works on any device, the meta device included, and never runs the model.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from autopeft.backbone.roles import LinearMap

ATTENTION_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
"""The table by which transformers' attention modules call the configured implementation."""

BEYOND_SDPA = ("softcap", "s_aux", "sinks", "indices", "block_indices")
"""Keywords of that call which its `sdpa` implementation refuses, or leaves out without a word."""


@dataclass(frozen=True)
class Stack:
    """A list of layers.

    Attributes:
        name: The list's name within the base model.
        modules: Its layers, bottom up.
    """

    name: str
    modules: tuple[nn.Module, ...]

    def __str__(self) -> str:
        kinds = "/".join(sorted({type(module).__name__ for module in self.modules}))
        return f"{self.name} ({len(self.modules)} x {kinds})"


def linear_maps(module: nn.Module, prefix: str = "") -> dict[str, LinearMap]:
    """The linear maps of a module by their name within it; `prefix` is the module's own name."""
    maps = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | Conv1D):
            full_name = ".".join(part for part in (prefix, name) if part)
            has_bias = child.bias is not None
            maps[name] = LinearMap(full_name, *widths(child), has_bias, isinstance(child, Conv1D))
    return maps


def widths(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Input and output width of a linear module, however its weight is kept."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.nx, module.nf


def n_parameters(model: nn.Module) -> int:
    """Parameters as the architecture has them, however the weights are kept.

    A 4-bit weight is stored as half as many bytes; a linear map's widths tell the truth.
    """
    stored = sum(parameter.numel() for parameter in model.parameters())
    packed = [
        module.in_features * module.out_features - module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    ]
    return stored + sum(packed)


def layer_stacks(model: nn.Module) -> tuple[Stack, ...]:
    """The outermost module lists whose members all hold linear maps."""
    stacks: list[Stack] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        inside_another = any(name.startswith(f"{stack.name}.") for stack in stacks)
        if not inside_another and all(linear_maps(layer) for layer in module):
            stacks.append(Stack(name, tuple(module)))
    return tuple(stacks)


def has_routed_experts(layer: nn.Module) -> bool:
    """Whether the layer keeps experts as stacked weights, which no linear module holds."""
    return any(parameter.dim() == 3 for parameter in layer.parameters())


def calls_attention_interface(module: nn.Module) -> bool:
    """Whether the module's forward looks its attention up in transformers' table.

    The `_supports_attention_backend` flag of the model does not tell: T5 leaves it off.
    """
    code = inspect.unwrap(type(module).forward).__code__
    return ATTENTION_INTERFACE in code.co_names


def attention_module(model: nn.Module, name: str, layer: str) -> str:
    """The module, from `name` up to below `layer`, that calls the attention interface, or ""."""
    for candidate in _upwards(name, layer):
        if calls_attention_interface(model.get_submodule(candidate)):
            return candidate
    return ""


def beyond_sdpa(module: nn.Module, config: Any) -> tuple[str, ...]:
    """What an attention module asks of the interface that scaled dot products cannot do.

    Keywords of its calls tell: a soft cap on scores, sinks, chosen keys. A soft cap counts only
    where the configuration sets one.
    """
    code = inspect.unwrap(type(module).forward).__code__
    keywords = {name for names in code.co_consts if isinstance(names, tuple) for name in names}
    asked = [name for name in BEYOND_SDPA if name in keywords]
    if getattr(config, "attn_logit_softcapping", None) is None:
        asked = [name for name in asked if name != "softcap"]
    return tuple(asked)


def is_causal(model: nn.Module, attention: str, model_type: str) -> bool:
    """Whether a token attends to earlier tokens only.

    Attention modules that use the interface say so themselves; for others, a causal language
    model that is no masked one is taken to be causal.
    """
    flag: Any = getattr(model.get_submodule(attention), "is_causal", None) if attention else None
    if flag is not None:
        return bool(flag)
    return (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _upwards(name: str, stop: str) -> Iterator[str]:
    while name and name != stop:
        yield name
        name = name.rpartition(".")[0]
