"""A trained adapter on disk: our own tensors, and `peft`'s beside them where it can hold them.

A folder holds `adapter.safetensors` (unpadded tensors, re-parametrisations folded, indices of
sparse weights, and the groups that they belong to), `autopeft.yaml` (the configuration with
everything it takes to train it again), `metrics.json`, the tokenizer, a model card, and
`adapter_config.json` with `adapter_model.safetensors`: of one of `peft`'s own types where one can
hold the configuration, else of the type that `autopeft.register_with_peft()` makes known to it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.counting import resolved
from autopeft.errors import ExportError, InputError
from autopeft.export.configuration_file import (
    ConfigurationFile,
    load_configuration_file,
    save_configuration,
)
from autopeft.export.model_card import model_card
from autopeft.export.peft_groups import FOLDER, save_groups
from autopeft.export.peft_registered import TYPE
from autopeft.export.peft_weights import PeftAdapter, peft_adapter, registered_adapter
from autopeft.methods import registry
from autopeft.sparsity import rules

TENSORS = "adapter.safetensors"
CONFIGURATION = "autopeft.yaml"
METRICS = "metrics.json"
PEFT_TENSORS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
REGISTERED = "peft-registered"
"""The form that `peft` loads once `autopeft.register_with_peft()` was called."""


@dataclass(frozen=True)
class Adapter:
    """What was trained.

    Attributes:
        file: Configuration, model, data and training.
        weights: The lane's tensors by saved name, unpadded, trained and fixed ones.
        label_names: Classes by number; () for regression.
        metrics: What was measured, plain JSON.
        built: What the tensors belong to: the configuration under its sparsity rule, with
            re-parametrisations folded; None before the adapter is saved.
    """

    file: ConfigurationFile
    weights: Mapping[str, Tensor]
    label_names: tuple[str, ...]
    metrics: Mapping[str, Any]
    built: Configuration | None = None


def folded_weights(
    configuration: Configuration, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors by saved name, with re-parametrisations folded into what they stand for."""
    folded = {name: tensor for name, tensor in weights.items() if name.startswith("head.")}
    for group in configuration.groups:
        for layer in group.layers:
            for site in group.sites or (group.method,):
                start = f"{group.method}.{layer}.{site}."
                own = {n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}
                own = registry[group.method].folded_tensors(group, own)
                folded.update({start + name: tensor for name, tensor in own.items()})
    return folded


def built_configuration(
    configuration: Configuration, anatomy: Anatomy, weights: Mapping[str, Tensor]
) -> tuple[Configuration, dict[str, Tensor]]:
    """What a trained configuration comes to under its rule: one without rule, and its tensors.

    It needs no scores, and holds nothing that the rule has dropped in training.
    """
    built = Configuration.of(
        resolved(configuration, anatomy).groups, training=dict(configuration.training)
    )
    return rules.of(configuration).stored(built, weights)


def folded_configuration(configuration: Configuration) -> Configuration:
    """The configuration of the folded tensors."""
    groups = [registry[group.method].folded_group(group) for group in configuration.groups]
    return Configuration.of(
        groups,
        training=dict(configuration.training),
        sparsity=dict(configuration.sparsity),
    )


def save_adapter(
    adapter: Adapter, folder: Path, backbone: Backbone, head: HeadRecipe
) -> tuple[str, ...]:
    """Write the folder.

    Returns:
        The forms that were written: `autopeft`, and `peft` where it can hold the adapter, else
        `peft-registered` where transformers has the task's class, and `peft-groups` where
        adapters of `peft` side by side hold it (see `peft_groups`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    built, weights = built_configuration(adapter.file.trained, backbone.anatomy, adapter.weights)
    tensors = folded_weights(built, weights)
    told = {"label_names": adapter.label_names, "built": folded_configuration(built).to_dict()}
    meta = {"autopeft": json.dumps(told)}
    save_file(
        {name: _narrowed(tensor).contiguous() for name, tensor in tensors.items()},
        folder / TENSORS,
        metadata=meta,
    )
    save_configuration(adapter.file, folder / CONFIGURATION)
    (folder / METRICS).write_text(json.dumps(adapter.metrics, indent=2) + "\n", encoding="utf-8")
    if backbone.tokenizer is not None:
        backbone.tokenizer.save_pretrained(folder)
    peft = _peft_form(built, weights, backbone, head)
    if peft is None:
        held = {name: _narrowed(tensor) for name, tensor in tensors.items()}
        peft = _registered_form(adapter, folded_configuration(built), held, backbone, head)
    forms = ("autopeft", *_save_peft(peft, folder))
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    if "peft" not in forms and save_groups(built, backbone, head, weights, folder):
        forms += ("peft-groups",)
    card = model_card(adapter.file, adapter.metrics, adapter.label_names, forms)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return forms


def _peft_form(
    built: Configuration, weights: Mapping[str, Tensor], backbone: Backbone, head: HeadRecipe
) -> PeftAdapter | None:
    """What plain `peft` loads; None where it cannot hold the configuration."""
    try:
        return peft_adapter(built, backbone, head, weights)
    except ExportError:
        return None


def _registered_form(
    adapter: Adapter,
    folded: Configuration,
    weights: Mapping[str, Tensor],
    backbone: Backbone,
    head: HeadRecipe,
) -> PeftAdapter | None:
    """What `peft` loads after `register_with_peft`; None where transformers lacks the head."""
    name, file = backbone.name, adapter.file
    try:
        return registered_adapter(
            folded, head, weights, base_model=name, sites=file.model.sites, seed=file.seed
        )
    except ExportError:
        return None


def _save_peft(held: PeftAdapter | None, folder: Path) -> tuple[str, ...]:
    """Write peft's form beside ours, if there is one; its name.

    An earlier adapter's files go first: nobody shall load those in place of this one.
    """
    for name in (PEFT_TENSORS, PEFT_CONFIG):
        (folder / name).unlink(missing_ok=True)
    if held is None:
        return ()
    save_file(held.tensors, folder / PEFT_TENSORS, metadata={"format": "pt"})
    text = json.dumps({**held.config, "inference_mode": True}, indent=2, sort_keys=True) + "\n"
    (folder / PEFT_CONFIG).write_text(text, encoding="utf-8")
    return (REGISTERED if held.config["peft_type"] == TYPE else "peft",)


def _narrowed(tensor: Tensor) -> Tensor:
    """Indices as int32, in which all but those of huge maps fit."""
    if tensor.is_floating_point() or int(tensor.max()) > torch.iinfo(torch.int32).max:
        return tensor
    return tensor.to(torch.int32)


def load_adapter(folder: Path) -> Adapter:
    """Read a folder written by `save_adapter`; InputError where it is none."""
    file = load_configuration_file(folder / CONFIGURATION, rescore=True)  # the tensors are chosen
    path = folder / TENSORS
    try:
        with safe_open(path, framework="pt") as opened:
            meta = json.loads((opened.metadata() or {})["autopeft"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not an adapter that autopeft wrote ({error})") from error
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    folded = replace(file, configuration=folded_configuration(file.configuration))
    # An adapter of an earlier release does not say: it knew no sparsity.
    built = Configuration.from_dict(meta["built"]) if "built" in meta else folded.configuration
    return Adapter(folded, weights, tuple(meta["label_names"]), metrics, built)
