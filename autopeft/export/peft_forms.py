"""Adapters of `peft`'s types that a method's own file describes: one type and one set of settings.

Each of these types holds its tensors by whole linear modules, or norms, and has one configuration
for all of them, so a configuration is carried where its groups agree. Part of a fused map is held
by vectors of outputs alone, which leave the other outputs as they are (see `Method.peft_fill`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy, Norm, Site
from autopeft.backbone.loading import Backbone
from autopeft.backbone.structure import widths
from autopeft.configuration import Configuration, Group
from autopeft.errors import Fault
from autopeft.export import peft_prefix, peft_prompt
from autopeft.methods import registry
from autopeft.methods.base import DenseMap
from autopeft.methods.lane_operator import Place

DESCRIBED_ELSEWHERE = ("", "LORA", "SHIRA", peft_prefix.TYPE, peft_prompt.TYPE)
"""Types that none holds, or that have modules of their own here."""
ON_CONV1D = ("IA3", "HIRA", "WAVEFT")
"""Types whose tensors are the same there as on torch's Linear."""


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
    refused = sorted({site.module for site in sites if _refuses(name, site)})
    if refused:
        why = "which holds several sites in one map, or is transformers' Conv1D"
        hint = "use --format yaml"
        faults.append(Fault("export", f"{name}.sites", f"{refused[0]}, {why}", "whole maps", hint))
    return faults


def _refuses(name: str, site: Site) -> bool:
    method = registry[name]
    if site.transposed and method.peft_type not in ON_CONV1D:
        return True
    return site.fused and method.peft_fill is None


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


def untrained_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """Why `peft` would train something else by that configuration; [] where the same."""
    (name,) = configuration.methods
    told = sorted({registry[name].peft_trains(group) for group in configuration.groups} - {""})
    fused = {
        h.module for _, _, h in _held(configuration, anatomy) if isinstance(h, Site) and h.fused
    }
    told += [f"at all of {module}, which holds several sites" for module in sorted(fused)[:1]]
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
    tensors: dict[str, Tensor] = {}
    for group, place, held in _held(configuration, backbone.anatomy):
        start = f"{name}.{place.layer}.{place.site}."
        own = {n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}
        like = next(iter(own.values())).device
        frozen = _frozen(backbone, held, like)
        for stored, tensor in registry[name].peft_tensors(group, place, own, frozen).items():
            key, fill = f"{held.module}.{stored}", registry[name].peft_fill
            if isinstance(held, Site) and held.fused and fill is not None:
                width = widths(backbone.model.get_submodule(held.module))[1]
                tensors[key] = _joined(tensor, held, width, tensors.get(key, fill))
            else:
                tensors[key] = tensor.contiguous()
    return tensors


def _joined(tensor: Tensor, held: Site, width: int, whole: Tensor | float) -> Tensor:
    """A vector of a site's outputs within that of its fused map.

    Args:
        tensor: [d_out, 1] or [1, d_out], of the site alone.
        held: The site.
        width: Outputs of the whole map.
        whole: The map's vector with its other sites, or what stands for outputs without.
    """
    axis = tensor.shape.index(held.out_features)
    if not isinstance(whole, Tensor):
        shape = [width if at == axis else size for at, size in enumerate(tensor.shape)]
        whole = tensor.new_full(shape, whole)
    whole.narrow(axis, held.start, held.out_features).copy_(tensor)
    return whole


def _frozen(backbone: Backbone, held: Site | Norm, device: torch.device) -> DenseMap:
    """A whole map [d_in, d_out], or a norm's scale and shift, float32."""
    module: Any = backbone.model.get_submodule(held.module)
    bias = getattr(module, "bias", None)  # not all norms have the name
    bias = None if bias is None else bias.detach().float().to(device)
    if isinstance(held, Norm):
        return DenseMap(module.weight.detach().float().to(device), bias)
    svd = backbone.frozen_map(held.layer, held.role).svd_on_cpu
    return DenseMap(backbone.weight(held.layer, held.role).to(device), bias, known_svd=svd)


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
