"""A mixed configuration as named groups: adapters of `peft`'s own types that stand side by side.

Each holds what one adapter of `peft` can: one type with one set of settings. Adapters that share a
module are none: `peft` would nest their layers, which is not what was trained.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.counting import placed_groups
from autopeft.errors import ExportError, Fault
from autopeft.export.peft_config import peft_faults
from autopeft.export.peft_weights import PeftAdapter, peft_adapter
from autopeft.methods import registry

logger = logging.getLogger(__name__)

LORA_TYPE = "LORA"
FOLDER, NAMES = "groups", "groups.json"
_FROM_WITHOUT = "which peft hands to a model from without: it puts no layers into it"
NOT_BESIDE = {
    "POLY": "whose layers want an argument that the call of a transformers model does not have",
    "TRAINABLE_TOKENS": "whose configuration has no place for a head",
    "ADAPTION_PROMPT": "which peft cannot put beside other layers of its own",
    "PREFIX_TUNING": _FROM_WITHOUT,
    "PROMPT_TUNING": _FROM_WITHOUT,
}
"""Types of `peft` whose adapters stand alone, and beside no other, with the reason."""


@dataclass(frozen=True)
class Split:
    """A configuration as adapters of `peft` side by side.

    Attributes:
        parts: By name, in the order of loading; {} where it does not split.
        faults: Why it does not; [] where it does.
    """

    parts: Mapping[str, Configuration]
    faults: Sequence[Fault] = ()


def split(configuration: Configuration, anatomy: Anatomy) -> Split:
    """The adapters that a configuration splits into.

    What becomes LoRA is one adapter, whatever its methods and places; of any other method, all
    groups are, or all of equal settings.

    Args:
        configuration: Under its sparsity rule, see `counting.resolved`.
        anatomy: The backbone.
    """
    found: dict[str, Configuration] = {}
    faults: list[Fault] = []
    for own in _alike(configuration):
        kind = registry[own[0].method].peft_type
        if kind in NOT_BESIDE:
            given = f"{kind}, {NOT_BESIDE[kind]}"
            faults.append(Fault("export", own[0].method, given, "types of peft with layers"))
            continue
        parts, why = _carried(own, configuration, anatomy)
        faults += why
        for part in parts:
            found[_name(part.methods, found)] = part
    faults = faults or _overlaps(found, anatomy)
    return Split({}, faults) if faults else Split(found)


def _alike(configuration: Configuration) -> list[list[Group]]:
    """Groups that may share an adapter: of one method; LoRA, all but DoRA, whatever its method."""
    alike: dict[tuple[str, bool], list[Group]] = {}
    for group in configuration.groups:
        method = registry[group.method]
        low_rank = method.peft_type == LORA_TYPE and not method.alone
        key = (LORA_TYPE if low_rank else group.method, bool(low_rank and group.get("dora")))
        alike.setdefault(key, []).append(group)
    return list(alike.values())


def _carried(
    groups: list[Group], whole: Configuration, anatomy: Anatomy
) -> tuple[list[Configuration], list[Fault]]:
    """Groups as one adapter, or as one for each method and set of settings; or why not so."""
    training = dict(whole.training)
    together = Configuration.of(groups, training=training)
    if not peft_faults(together, anatomy):
        return [together], []
    parts, faults = [], []
    for method, settings in dict.fromkeys((group.method, group.settings) for group in groups):
        own = [each for each in groups if (each.method, each.settings) == (method, settings)]
        parts.append(Configuration.of(own, training=training))
        faults += peft_faults(parts[-1], anatomy)
    return parts, faults


def _name(methods: Sequence[str], taken: Mapping[str, object]) -> str:
    """Of a group, fit for a folder and for `peft`, which takes dots for modules."""
    base = methods[0].replace(":", "_") if len(methods) == 1 else LORA_TYPE.lower()
    number = sum(name.rpartition("_")[0] == base for name in taken)
    return f"{base}_{number}"


def _overlaps(parts: Mapping[str, Configuration], anatomy: Anatomy) -> list[Fault]:
    """Modules that two parts adapt, one for each pair."""
    taken: dict[tuple[int, str], str] = {}
    faults = {}
    for name, part in parts.items():
        for at in sorted(_modules(part, anatomy)):
            other = taken.setdefault(at, name)
            if other != name and (other, name) not in faults:
                given = f"{other} and {name}, both at {at[1]}"
                allowed = "one of them a module: peft would put one layer around the other's"
                faults[other, name] = Fault("export", part.methods[0], given, allowed)
    return list(faults.values())


def _modules(configuration: Configuration, anatomy: Anatomy) -> set[tuple[int, str]]:
    """What a configuration adapts, by layer and module."""
    found = set()
    for _, place in placed_groups(configuration, anatomy):
        layer = anatomy.layers[place.layer]
        held = layer.sites.get(place.site) or layer.norms.get(place.site)
        found.add((place.layer, place.site if held is None else held.module))
    return found


def save_groups(
    configuration: Configuration,
    backbone: Backbone,
    head: HeadRecipe,
    weights: Mapping[str, Tensor],
    folder: Path,
) -> tuple[str, ...]:
    """Write every group into a folder of its own; the head goes with the first.

    Args:
        configuration: Of several groups.
        backbone: What it was trained on.
        head: The task head.
        weights: The lane's unpadded tensors by saved name, fixed ones too.
        folder: Gets `groups/NAME/` and `groups/groups.json`, the names in order.

    Returns:
        The names; () where it does not split into adapters of `peft`, and nothing is written but
        a line of the log, which says why.
    """
    found = split(configuration, backbone.anatomy)
    faults = list(found.faults)
    try:
        made = {
            name: peft_adapter(part, backbone, head, weights) for name, part in found.parts.items()
        }
    except ExportError as error:
        made, faults = {}, list(error.faults)
    if faults:
        told = "; ".join(f"{fault.key}: {fault.given}" for fault in faults)
        logger.info("not written as groups of peft side by side (%s)", told)
    for index, (name, adapter) in enumerate(made.items()):
        _write(adapter if index == 0 else _headless(adapter, head), folder / FOLDER / name)
    if made:
        text = json.dumps(list(made)) + "\n"
        (folder / FOLDER / NAMES).write_text(text, encoding="utf-8")
    return tuple(made)


def _headless(adapter: PeftAdapter, head: HeadRecipe) -> PeftAdapter:
    starts = tuple(f"base_model.model.{step.name}." for step in head.steps)
    starts += tuple(f"base_model.model.{step.norm.name}." for step in head.steps if step.norm)
    tensors = {n: t for n, t in adapter.tensors.items() if not n.startswith(starts)}
    return PeftAdapter({**adapter.config, "modules_to_save": None}, tensors)


def _write(adapter: PeftAdapter, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**adapter.config, "inference_mode": True}, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
