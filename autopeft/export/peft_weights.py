"""Trained weights under HF `peft`'s names, LoRA's and sparse ones, exact also on fused maps.

On a fused map, the slices' updates become one: their A stacked, their B in block rows, their
scales folded into B (so that alpha equals the rank).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.backbone.quantization import dense_weight
from autopeft.backbone.structure import widths
from autopeft.configuration import Configuration
from autopeft.errors import ExportError
from autopeft.export.peft_config import (
    LoraSite,
    formed_config,
    lora_config,
    lora_sites,
    peft_config,
    peft_faults,
    uses_dora,
)
from autopeft.export.peft_folding import as_lora, folds
from autopeft.export.peft_forms import form_tensors, has_form
from autopeft.export.peft_passed import is_prefixed, passed_tensors, passes_on, second_head
from autopeft.export.peft_prefix import is_prefix, prefix_tensors
from autopeft.export.peft_prompt import is_prompt, prompt_tensors
from autopeft.export.peft_registered import registered
from autopeft.export.peft_shira import shira

PREFIX, BARE = "base_model.model.", "base_model."
"""In front of a task model's names; the second where `peft` has put nothing into the model."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as `PeftModel.from_pretrained` loads it.

    Attributes:
        config: Content of `adapter_config.json`.
        tensors: Content of `adapter_model.safetensors`.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def registered_adapter(
    configuration: Configuration,
    head: HeadRecipe,
    weights: Mapping[str, Tensor],
    *,
    base_model: str,
    sites: Mapping[str, str] | None = None,
    seed: int = 0,
) -> PeftAdapter:
    """Any configuration as an adapter of the type that `register_with_peft` makes known.

    Args:
        configuration: What the tensors belong to, re-parametrisations folded.
        head: The task head.
        weights: The lane's tensors by saved name, folded, fixed ones and the head's too.
        base_model: The backbone's name.
        sites: What the model block says of sites.
        seed: That of its training.

    Raises:
        ExportError: No transformers task class has such a head.
    """
    config, tensors = registered(
        configuration, head, weights, base_model=base_model, sites=sites, seed=seed
    )
    return PeftAdapter(config, tensors | _head(head, weights))


def peft_adapter(
    configuration: Configuration,
    backbone: Backbone,
    head: HeadRecipe,
    weights: Mapping[str, Tensor],
) -> PeftAdapter:
    """A trained lane as a `peft` adapter of the backbone's task class, or causal class.

    Args:
        configuration: Of methods of one type of `peft`.
        backbone: What it was trained on.
        head: The task head.
        weights: The lane's unpadded tensors by saved name, fixed ones too.

    Raises:
        ExportError: HF peft cannot hold it.
    """
    faults = peft_faults(configuration, backbone.anatomy)
    if faults:
        raise ExportError(faults)
    if passes_on(configuration):
        config, passed = passed_tensors(configuration, backbone, head, weights)
        at = BARE if is_prefixed(configuration) else PREFIX
        own = _head(head, weights, at)
        return PeftAdapter(config, passed | own | second_head(configuration, own))
    if any(folds(method) for method in configuration.methods):
        configuration, weights = as_lora(configuration, backbone, weights)
    if is_prompt(configuration):
        config = peft_config(configuration, backbone.anatomy, head, base_model=backbone.name)
        return PeftAdapter(config, prompt_tensors(weights))
    if is_prefix(configuration):
        config = peft_config(configuration, backbone.anatomy, head, base_model=backbone.name)
        held = prefix_tensors(configuration, backbone, weights)
        own = {} if head.pool == "all" else _head(head, weights, BARE)
        return PeftAdapter(config, held | own)
    base = f"{PREFIX}{backbone.model.base_model_prefix}."
    if configuration.methods == ("sparse",):
        config, sparse = shira(configuration, backbone, head, weights)
        return PeftAdapter(
            config, {base + name: t for name, t in sparse.items()} | _head(head, weights)
        )
    if has_form(configuration):
        anatomy = backbone.anatomy
        config = formed_config(configuration, anatomy, head, base_model=backbone.name)
        formed = form_tensors(configuration, backbone, weights)
        return PeftAdapter(
            config, {base + name: t for name, t in formed.items()} | _head(head, weights)
        )
    by_module: dict[str, list[LoraSite]] = defaultdict(list)
    for lora in lora_sites(configuration, backbone.anatomy):
        by_module[lora.site.module].append(lora)
    modules, tensors = [], {}
    for module, sites in by_module.items():
        if sites[0].site.fused:
            low, high = _fused(module, sites, backbone, weights)
            rank, alpha = low.shape[0], float(low.shape[0])
        else:
            low, high = _plain(sites[0], weights)
            rank, alpha = sites[0].rank, sites[0].alpha
        modules.append((module, rank, alpha))
        tensors[f"{base}{module}.lora_A.weight"] = low.contiguous()
        tensors[f"{base}{module}.lora_B.weight"] = high.contiguous()
        if uses_dora(configuration):
            lengths = _lengths(module, sites, backbone, weights)
            tensors[f"{base}{module}.lora_magnitude_vector"] = lengths
    dropout = float(configuration.groups[0]["dropout"])
    dora = uses_dora(configuration)
    config = lora_config(modules, head, dropout=dropout, base_model=backbone.name, dora=dora)
    return PeftAdapter(config, tensors | _head(head, weights))


def _plain(lora: LoraSite, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A [r, d_in] and B [d_out, r], as peft keeps them."""
    name = f"lora.{lora.site.layer}.{lora.site.role}"
    return weights[f"{name}.A"].T, weights[f"{name}.B"].T


def _fused(
    module: str, sites: list[LoraSite], backbone: Backbone, weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    linear: Any = backbone.model.get_submodule(module)
    _, d_out = widths(linear)
    low = torch.cat([_plain(lora, weights)[0] for lora in sites])
    high = low.new_zeros(d_out, low.shape[0])
    column = 0
    for lora in sites:
        start, stop = lora.site.start, lora.site.start + lora.site.out_features
        scaled = _plain(lora, weights)[1] * (lora.alpha / lora.rank)
        high[start:stop, column : column + lora.rank] = scaled
        column += lora.rank
    return low, high


def _lengths(
    module: str, sites: list[LoraSite], backbone: Backbone, weights: Mapping[str, Tensor]
) -> Tensor:
    """DoRA's trained lengths [d_out] of a whole map; those of frozen outputs where no site is."""
    whole = dense_weight(backbone.model.get_submodule(module)).cpu()
    lengths: Tensor = whole.norm(dim=0 if sites[0].site.transposed else 1)
    for lora in sites:
        start, stop = lora.site.start, lora.site.start + lora.site.out_features
        lengths[start:stop] += weights[f"lora.{lora.site.layer}.{lora.site.role}.magnitude"]
    return lengths


def _head(head: HeadRecipe, weights: Mapping[str, Tensor], at: str = PREFIX) -> dict[str, Tensor]:
    """The head's tensors under the task model's names."""
    tensors = {}
    for index, step in enumerate(head.steps):
        name = f"{at}{step.name}"
        tensors[f"{name}.weight"] = weights[f"head.{index}_weight"].T.contiguous()
        if step.bias:
            tensors[f"{name}.bias"] = weights[f"head.{index}_bias"]
        if step.norm is not None:
            norm = f"{at}{step.norm.name}"
            tensors[f"{norm}.weight"] = weights[f"head.{index}_norm_weight"]
            if step.norm.bias:
                tensors[f"{norm}.bias"] = weights[f"head.{index}_norm_bias"]
    return tensors
