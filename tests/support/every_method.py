"""Lanes of every registered method: a new method is in all packs made of them by existing."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import tiny_backbones as tiny
import torch
from importance_maps import with_importance
from method_cases import configuration, dropout, sizes, variants

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.methods import registry
from autopeft.training.lanes.pack import Lane

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.1}
DROPOUT = 0.2
FEW_SITES = ("query", "up", "down", "attention", "ffn")
"""Maps of three shapes and both sub-layers, which are enough to be packed."""
PLACED: tuple[tuple[int, ...], ...] = ((0, 2), (1, 2))
"""Layers of a method's lanes, in turns: they share some, and branch off apart."""


def measured_backbone(architecture: str, dtype: torch.dtype = torch.float64) -> Backbone:
    """A tiny backbone with an importance map, which some methods ask for."""
    return measured(tiny.tiny_backbone(architecture, dtype))


def measured(backbone: Backbone) -> Backbone:
    """The backbone with an importance map."""
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


def lanes_of_each(
    backbone: Backbone,
    names: Iterable[str],
    *,
    turn: int = 0,
    placed: Sequence[tuple[int, ...]] = PLACED,
) -> list[Lane]:
    """As many lanes of each method as `placed` has entries, with dropout where it has one.

    They have the smallest and the largest of its sizes and one after another of its variants, the
    next one where a backbone's widths do not allow it: some need square maps.

    Args:
        backbone: With an importance map.
        names: Methods that it carries.
        turn: Of which variant the first lane is.
        placed: The lanes' layers; the last one in place of those that there are not.
    """
    anatomy, lanes = backbone.anatomy, list[Lane]()
    for name in names:
        every, offered = variants(name), sizes(name, anatomy)
        for number, layers in enumerate(placed):
            at = sorted({min(layer, len(anatomy.layers) - 1) for layer in layers})
            for variant in every[(turn + number) % len(every) :] + every:
                given = _few(name) | dropout(name, DROPOUT) | variant
                size = given.pop(registry[name].schema.size, offered[-(number % 2)])
                own = configuration(name, anatomy, size, layers=at, training=TRAINING, **given)
                if not counting.faults(own, anatomy):
                    break
            lanes.append(Lane(len(lanes), own))
    return lanes


def _few(name: str) -> dict[str, Any]:
    sites = [site for site in FEW_SITES if site in registry[name].schema.sites]
    return {"sites": sites} if sites else {}
