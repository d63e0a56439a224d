"""A mixed configuration as named groups: adapters of `peft`'s own types that stand side by side.

Each holds what one adapter of `peft` can: one type with one set of settings. Groups whose modules
overlap are none: `peft` would nest their layers, which is not what was trained.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.counting import placed_groups
from autopeft.errors import ExportError
from autopeft.export.peft_config import peft_faults
from autopeft.export.peft_weights import PeftAdapter, peft_adapter

FOLDER, NAMES = "groups", "groups.json"
NEEDS_MORE = frozenset({"peft:POLY", "peft:TRAINABLE_TOKENS"})
"""Types whose layers want an argument that the call of a transformers model does not have, or
whose configuration has no place for a head."""


def parts(configuration: Configuration, anatomy: Anatomy) -> dict[str, Configuration]:
    """Adapters that a configuration splits into, by name; {} where it does not split.

    Args:
        configuration: Under its sparsity rule, see `counting.resolved`.
        anatomy: The backbone.
    """
    found: dict[str, Configuration] = {}
    for method in configuration.methods:
        own = [group for group in configuration.groups if group.method == method]
        for part in _carried(own, configuration, anatomy):
            if part is None or method in NEEDS_MORE:
                return {}
            found[_name(method, found)] = part
    taken = [_modules(part, anatomy) for part in found.values()]
    apart = sum(map(len, taken)) == len(set().union(*taken))
    return found if apart else {}


def _carried(
    groups: list[Group], whole: Configuration, anatomy: Anatomy
) -> Iterator[Configuration | None]:
    """All groups of a method as one adapter, or one for each set of settings; None for none."""
    training = dict(whole.training)
    together = Configuration.of(groups, training=training)
    if not peft_faults(together, anatomy):
        yield together
        return
    for settings in dict.fromkeys(group.settings for group in groups):
        own = [group for group in groups if group.settings == settings]
        alone = Configuration.of(own, training=training)
        yield None if peft_faults(alone, anatomy) else alone


def _name(method: str, taken: Mapping[str, object]) -> str:
    """Of a group, fit for a folder and for `peft`, which takes dots for modules."""
    base = method.replace(":", "_")
    number = sum(name.rpartition("_")[0] == base for name in taken)
    return f"{base}_{number}"


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
        The names; () where it does not split into adapters of `peft`, and nothing is written.
    """
    try:
        made = {
            name: peft_adapter(part, backbone, head, weights)
            for name, part in parts(configuration, backbone.anatomy).items()
        }
    except ExportError:
        return ()
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
