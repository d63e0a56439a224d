"""Prefixes as HF `peft` holds them: one length, in all layers of some decoders.

`peft` hands prefixes over as a cache, so that the text moves behind them: queries are turned by P
positions more than where they were trained, P the length. Keys that are turned by P positions
undo it, where positions are turns of halves (Llama, Qwen) and attention sees everything before.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.errors import ExportError, Fault
from autopeft.export.peft_prompt import EXACT
from autopeft.methods import registry

TYPE = "PREFIX_TUNING"
CLASSIFIES_BY_CACHE = "FEATURE_EXTRACTION"
"""The task under which `peft` hands a classifier its cache. Under SEQ_CLS it looks for an argument
`past_key_values` of the class and its base model, which transformers 5 calls `cache`, and gives
up."""
MOVING = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies depend on a text's length."""


def is_prefix(configuration: Configuration) -> bool:
    """Whether it is prefixes alone."""
    return configuration.methods == ("prefix",)


def prefix_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """What of prefixes, if there are any, HF peft would do in another way."""
    groups = [group for group in configuration.groups if group.method == "prefix"]
    if not groups:
        return []
    faults, hint = [], "use --format yaml"
    layers = sorted(layer for group in groups for layer in group.layers)
    if layers != list(range(len(anatomy.layers))):
        given = ", ".join(map(str, layers))
        faults.append(Fault("export", "prefix.layers", given, "all layers", hint))
    lengths = sorted({int(group["length"]) for group in groups})
    if len(lengths) > 1:
        given = ", ".join(map(str, lengths))
        faults.append(Fault("export", "prefix.length", given, "one length", hint))
    if anatomy.architecture not in EXACT:
        allowed = f"{', '.join(EXACT)}, whose positions HF peft can move to the same effect"
        faults.append(Fault("export", "prefix", anatomy.architecture, allowed, hint))
    return faults


def prefix_config(
    configuration: Configuration,
    anatomy: Anatomy,
    head: HeadRecipe,
    options: Mapping[str, Any],
) -> Any:
    """The `PeftConfig`; `prefix_faults` has found none.

    Args:
        configuration: Of prefixes of one length.
        anatomy: Of the backbone.
        head: Of the task.
        options: Those of every type.
    """
    from peft import PrefixTuningConfig

    if head.pool != "all":
        options = {**options, "task_type": CLASSIFIES_BY_CACHE}
    return PrefixTuningConfig(
        num_virtual_tokens=int(configuration.groups[0]["length"]),
        num_layers=len(anatomy.layers),
        num_attention_heads=anatomy.n_kv_heads,
        token_dim=anatomy.n_kv_heads * anatomy.head_dim,
        **options,
    )


def prefix_tensors(
    configuration: Configuration, backbone: Backbone, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """[P, layers * 2 * n_kv_heads * head_dim], keys and then values layer by layer.

    Raises:
        ExportError: Its positions or windows are such that moving the text changes more.
    """
    config, rotary = backbone.model.config, backbone.model.rotary_emb
    kind = str(getattr(rotary, "rope_type", "default"))
    if kind in MOVING or "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        given = f"rotary positions of kind {kind}, or windows of attention"
        allowed = "positions that do not depend on the length, and attention without windows"
        raise ExportError(Fault("export", "prefix", given, allowed, "use --format yaml"))
    found: dict[int, Tensor] = {}
    for group in configuration.groups:
        for layer in group.layers:
            start = f"prefix.{layer}.prefix."
            own = {n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}
            held = registry["prefix"].folded_tensors(group, own)
            found[layer] = torch.cat([_turned(held["keys"], backbone), held["values"]], dim=1)
    return {"prompt_embeddings": torch.cat([found[layer] for layer in sorted(found)], dim=1)}


def _turned(keys: Tensor, backbone: Backbone) -> Tensor:
    """Keys [P, n_kv_heads * head_dim] as at position P."""
    rotary: Any = backbone.model.rotary_emb
    frequencies = rotary.inv_freq.double().to(keys.device)
    angles = torch.cat([frequencies, frequencies]) * len(keys)
    heads = keys.double().view(len(keys), -1, len(angles))
    first, second = heads.chunk(2, dim=-1)
    turned = heads * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    return turned.flatten(1).to(keys.dtype)
