"""Adapters of `peft`'s types that a method's own file describes: one type and one set of settings.

Each of these types holds its tensors by whole linear modules, or norms, and has one configuration
for all of them, so a configuration is carried where its groups agree and sit on maps of their own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy, Norm, Site
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import Fault
from autopeft.export.peft_prompt import TYPE
from autopeft.methods import registry
from autopeft.methods.base import DenseMap, Place

DESCRIBED_ELSEWHERE = ("", "LORA", "SHIRA", TYPE)
"""Types that none holds, or that have modules of their own here."""


def has_form(configuration: Configuration) -> bool:
    """Whether it is one method's alone, whose file says how `peft` holds it."""
    methods = configuration.methods
    return len(methods) == 1 and registry[methods[0]].peft_type not in DESCRIBED_ELSEWHERE


def form_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """Why `peft` cannot hold such a configuration; [] where it can."""
    (name,) = configuration.methods
    method, faults = registry[name], []
    lacking = sorted({method.peft_lacks(group, anatomy) for group in configuration.groups} - {""})
    faults += [
        Fault("export", name, lacks, "what HF peft holds", "use --format yaml")
        for lacks in lacking
    ]
    given = {str(dict(method.peft_settings(group))) for group in configuration.groups}
    if len(given) > 1:
        allowed = "one set of settings for all of HF peft's"
        faults.append(Fault("export", name, "; ".join(sorted(given)), allowed))
    sites = [held for _, _, held in _held(configuration, anatomy) if isinstance(held, Site)]
    shared = sorted({site.module for site in sites if site.fused or site.transposed})
    if shared:
        why = "which holds several sites in one map, or is transformers' Conv1D"
        hint = "use --format yaml"
        faults.append(Fault("export", f"{name}.sites", f"{shared[0]}, {why}", "whole maps", hint))
    return faults


def form_config(configuration: Configuration, anatomy: Anatomy, options: Mapping[str, Any]) -> Any:
    """The `PeftConfig`; `form_faults` has found none.

    Args:
        configuration: What is trained.
        anatomy: Of the backbone.
        options: Those of every type: task, head modules, base model.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    (name,) = configuration.methods
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(registry[name].peft_type)]
    modules = {held.module: (group, at) for group, at, held in _held(configuration, anatomy)}
    return kind(
        target_modules=sorted(modules),
        **registry[name].peft_settings(configuration.groups[0]),
        **registry[name].peft_module_settings(modules),
        **options,
    )


def untrained_faults(configuration: Configuration) -> list[Fault]:
    """Why `peft` would train something else by that configuration; [] where the same."""
    (name,) = configuration.methods
    told = sorted({registry[name].peft_trains(group) for group in configuration.groups} - {""})
    hint = "train it with autopeft train: the trained adapter is exact in peft"
    return [Fault("export", name, other, "what peft trains as well", hint) for other in told]


def form_tensors(
    configuration: Configuration, backbone: Backbone, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A lane's tensors by their names within the base model; the config's modules.

    Args:
        configuration: What was trained.
        backbone: What it was trained on.
        weights: Unpadded, by saved name, fixed ones too.
    """
    (name,) = configuration.methods
    tensors = {}
    for group, place, held in _held(configuration, backbone.anatomy):
        start = f"{name}.{place.layer}.{place.site}."
        own = {n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}
        like = next(iter(own.values())).device
        frozen = _frozen(backbone, held, like)
        for stored, tensor in registry[name].peft_tensors(group, place, own, frozen).items():
            tensors[f"{held.module}.{stored}"] = tensor.contiguous()
    return tensors


def _frozen(backbone: Backbone, held: Site | Norm, device: torch.device) -> DenseMap:
    """A whole map [d_in, d_out], or a norm's scale and shift, float32."""
    module: Any = backbone.model.get_submodule(held.module)
    bias = getattr(module, "bias", None)  # not all norms have the name
    bias = None if bias is None else bias.detach().float().to(device)
    if isinstance(held, Norm):
        return DenseMap(module.weight.detach().float().to(device), bias)
    return DenseMap(backbone.weight(held.layer, held.role).to(device), bias)


def _held(
    configuration: Configuration, anatomy: Anatomy
) -> list[tuple[Group, Place, Site | Norm]]:
    found = []
    for group in configuration.groups:
        for place in registry[group.method].places(group, anatomy):
            layer = anatomy.layers[place.layer]
            held = layer.sites.get(place.site) or layer.norms[place.site]
            found.append((group, place, held))
    return found
