"""A small, legal case of every type of HF `peft` that is passed through."""

from collections.abc import Mapping
from typing import Any

import tiny_backbones as tiny
import torch
from torch import Tensor

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Pack

TRAINING = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_ratio": 0.0}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ADAPTION_PROMPT": {"adapter_len": 3},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BOFT": {"boft_block_size": 8},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {"sparse_rate": 0.05},
    "GRALORA": {"r": 4},
    "LILY": {"r": 4},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_ranks": 2},
    "OFT": {"oft_block_size": 8},
    "OSF": {"effective_rank": 8},
    "PEANUT": {"r": 4},
    "PREFIX_TUNING": {
        "num_virtual_tokens": 3,
        "prefix_projection": True,
        "encoder_hidden_size": 8,
    },
    "PROMPT_TUNING": {"num_virtual_tokens": 3, "prompt_tuning_init": "SAMPLE_VOCAB"},
    "PSOFT": {"r": 8},
    "PVERA": {"r": 8},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHADOW": {"r": 4, "shadow_dropout": 0.0},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": "4, 7 20-40"},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 20},
}
"""What does not fit a tiny backbone by default: it is 32 wide, 48 inside its FFN."""


def passed_group(name: str, layers: tuple[int, ...] = (0, 2), **settings: Any) -> Group:
    """A group of `peft:<TYPE>` on query, value and down, on norms, or where the type implies."""
    norm = name == "peft:LN_TUNING"
    sites: tuple[str, ...] = ("attention_norm", "ffn_norm") if norm else ("query", "value", "down")
    if name == "peft:LILY":  # BERT's `down` is called `output.dense`, as another map's name ends
        sites = ("query", "value", "up")
    if not registry[name].schema.sites:
        sites = ()
        layers = (0, 1, 2) if name in ("peft:PREFIX_TUNING", "peft:CARTRIDGE") else (0,)
        layers = (1, 2) if name in ("peft:ADAPTION_PROMPT", "peft:SHADOW") else layers
    own = dict(SETTINGS.get(name.removeprefix("peft:"), {}))
    size = registry[name].schema.size
    if size and size not in own | settings:
        own[size] = registry[name].schema.parameter(size).default
    return Group.of(name, layers, sites, **own | settings)


def passed(name: str, **settings: Any) -> Configuration:
    """The configuration of such a group alone."""
    return Configuration.of([passed_group(name, **settings)], training=TRAINING)


def biased(architecture: str) -> Backbone:
    """A tiny backbone in float32 all of whose biases matter."""
    own = tiny.tiny_backbone(architecture, torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in own.model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return own


def biased_bert() -> Backbone:
    """Such a BERT."""
    return biased("bert")


def tensors_of(pack: Pack) -> dict[str, Tensor]:
    """Copies of what its first lane is saved by, fixed tensors too."""
    own = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    return {name: tensor.detach().clone() for name, tensor in own.items()}


def outputs_of(pack: Pack, given: Batch | str = "bert") -> Tensor:
    """Logits of its first lane for a batch, or for an architecture's tiny one."""
    batch = tiny.tiny_batch(given) if isinstance(given, str) else given
    with torch.no_grad(), pack.running():
        logits: Tensor = pack(batch, SILENT)[0]
    return logits
