"""Adapters of `peft`'s types that a method's own file describes: one type and one set of settings.

Each of these types holds its tensors by whole linear modules and has one configuration for all of
them, so a configuration is carried where its groups agree and sit on maps of their own.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autopeft.backbone.anatomy import Anatomy, Site
from autopeft.configuration import Configuration
from autopeft.errors import Fault
from autopeft.export.peft_prompt import TYPE
from autopeft.methods import registry

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
    lacking = sorted({method.peft_lacks(group) for group in configuration.groups} - {""})
    faults += [
        Fault("export", name, lacks, "what HF peft holds", "use --format yaml")
        for lacks in lacking
    ]
    given = {str(dict(method.peft_settings(group))) for group in configuration.groups}
    if len(given) > 1:
        allowed = "one set of settings for all of HF peft's"
        faults.append(Fault("export", name, "; ".join(sorted(given)), allowed))
    sites = [site for _, _, site in _sites(configuration, anatomy)]
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
    return kind(
        target_modules=sorted(site.module for _, _, site in _sites(configuration, anatomy)),
        **registry[name].peft_settings(configuration.groups[0]),
        **options,
    )


def form_tensors(
    configuration: Configuration, anatomy: Anatomy, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A lane's tensors by their names within the base model; the config's sites.

    Args:
        configuration: What was trained.
        anatomy: Of the backbone.
        weights: Unpadded, by saved name.
    """
    (name,) = configuration.methods
    tensors = {}
    for layer, role, site in _sites(configuration, anatomy):
        start = f"{name}.{layer}.{role}."
        own = {n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}
        for held, tensor in registry[name].peft_tensors(own).items():
            tensors[f"{site.module}.{held}"] = tensor.contiguous()
    return tensors


def _sites(configuration: Configuration, anatomy: Anatomy) -> list[tuple[int, str, Site]]:
    return [
        (layer, role, anatomy.site(layer, role))
        for group in configuration.groups
        for layer in group.layers
        for role in group.sites
    ]
