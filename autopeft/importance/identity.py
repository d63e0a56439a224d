"""What makes two measurements the same: all that a map's scores depend on, in one digest."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from autopeft.backbone.anatomy import Site
from autopeft.importance.settings import MOST_WEIGHTS, USUAL_SHARE, ImportanceSettings
from autopeft.training.data.examples import Examples
from autopeft.training.loop import Trainer

FORMULAS = 1
"""Goes up whenever a score's formula changes: older measurements are then not reused."""


def fingerprint(
    trainer: Trainer, settings: ImportanceSettings, *, data: str, rows: Sequence[np.ndarray]
) -> str:
    """SHA-256, hexadecimal.

    Args:
        trainer: Backbone, tokenised data, task and batch size.
        settings: What is measured.
        data: The data's own fingerprint.
        rows: Example numbers of every batch.
    """
    backbone = trainer.backbone
    sites = [site for layer in backbone.anatomy.layers for site in layer.sites.values()]
    parts = {
        "formulas": FORMULAS,
        "backbone": backbone.fingerprint,
        "dtype": str(next(backbone.model.parameters()).dtype),
        "sites": [_facts(site) for site in sites],
        "data": data,
        "examples": _examples(trainer.train.examples, rows),
        "task": trainer.settings.task,
        "outputs": [step.out_features for step in trainer.recipe.steps],
        "pool": trainer.recipe.pool,
        "head": settings.head if trainer.recipe.steps else "none",
        "keep": _keep(settings, list(backbone.anatomy.shapes().values())),
        "block": settings.block,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _keep(settings: ImportanceSettings, shapes: Sequence[tuple[int, int]]) -> float | list[object]:
    """The share, and the limit where it makes a difference."""
    if settings.keep is not None:
        return [settings.keep, "all"]
    limited = any(
        count < int(settings.share_of(shape))
        for count, shape in zip(settings.kept(shapes), shapes, strict=True)
    )
    return [USUAL_SHARE, MOST_WEIGHTS] if limited else USUAL_SHARE


def _facts(site: Site) -> list[object]:
    return [site.layer, site.role, site.module, site.start, site.in_features, site.out_features]


def _examples(examples: Examples, batches: Sequence[np.ndarray]) -> str:
    """Of the token ids, labels and batches: texts alone do not tell how they were tokenised."""
    digest = hashlib.sha256()
    for batch in batches:
        own = examples.rows(batch)
        digest.update(f"batch {len(batch)} {own.labels.dtype}".encode())
        digest.update(np.ascontiguousarray(own.labels).tobytes())
        for arrays in (own.token_ids, own.token_types, own.targets):
            for array in arrays or ():
                digest.update(f"{array.dtype} {len(array)}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
