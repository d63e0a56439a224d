"""Which frozen activations a study keeps, and under what name."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from autopeft.backbone.loading import Backbone
from autopeft.training import machine
from autopeft.training.activations import ActivationCache, CacheBudget, planned_homes
from autopeft.training.batches import PaddedExamples, evaluation_order

BLOCK_ROWS = 64
"""Examples of a block where no training order says which are met together."""


MEMORY_SHARE = 0.1
"""Of the device's whole memory, free or not: the same study keeps the same layers again."""

DISK_BYTES = 8 << 30


def cache_budget(
    memory: int | Literal["auto"],
    disk: int | Literal["auto"],
    *,
    device: str,
    folder: Path,
    runners: int = 1,
) -> CacheBudget:
    """What `execution.cache_memory` and `execution.cache_disk` allow one runner on a device.

    Args:
        memory: Bytes, or `auto` for `MEMORY_SHARE` of the device's memory.
        disk: Bytes, or `auto` for `DISK_BYTES`.
        device: A torch device's name.
        folder: Where files go.
        runners: Of the study. All share the disk, and the machine's memory where that is the
            device's; a GPU has memory of its own.
    """
    if memory == "auto":
        memory = int(MEMORY_SHARE * _memory_bytes(device))
    disk = DISK_BYTES if disk == "auto" else disk
    sharing = 1 if device.startswith("cuda") else runners
    return CacheBudget(memory // sharing, disk // runners, folder)


def _memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine.memory_bytes()


def make_caches(
    backbone: Backbone,
    sets: Mapping[PaddedExamples, Sequence[np.ndarray] | None],
    budget: CacheBudget,
    *,
    max_rows: int,
    precision: str,
    fingerprint: str,
) -> dict[PaddedExamples, ActivationCache]:
    """A cache for each set of examples; none where nothing can be kept.

    Args:
        backbone: Whose activations they are; its layers can be left out (`HandedOn`).
        sets: Examples, with the batches of an epoch in which they are first met; None = by length.
        budget: Shared by all sets.
        max_rows: Examples of a pass.
        precision: Of the passes.
        fingerprint: Of the data.
    """
    if not (budget.memory_bytes or budget.disk_bytes):
        return {}
    n_layers = len(backbone.anatomy.layers)
    width = backbone.anatomy.hidden_size * next(backbone.model.parameters()).element_size()
    sizes = [(int(examples.lengths.sum()) + 1) * width for examples in sets]
    caches = {}
    homes = planned_homes(n_layers, sizes, budget)
    for (examples, epoch), own in zip(sets.items(), homes, strict=True):
        batches = evaluation_order(examples.lengths, BLOCK_ROWS) if epoch is None else epoch
        blocks = [part for batch in batches for part in _parts(batch, max_rows)]
        key = _key(backbone, examples, blocks, precision, fingerprint)
        caches[examples] = ActivationCache(
            examples,
            blocks,
            homes=own,
            width=backbone.anatomy.hidden_size,
            folder=budget.folder,
            key=key,
        )
    return caches


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _key(
    backbone: Backbone,
    examples: PaddedExamples,
    blocks: Sequence[np.ndarray],
    precision: str,
    fingerprint: str,
) -> str:
    digest = hashlib.sha256()
    given = examples.examples
    for ids in (*given.token_ids, *(given.token_types or ()), *blocks):
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())
        digest.update(b"/")
    model: Any = backbone.model
    facts = (
        backbone.fingerprint,
        fingerprint,
        digest.hexdigest(),
        precision,
        next(model.parameters()).dtype,
        model.config._attn_implementation,
        model.device.type,
        torch.__version__,
        transformers.__version__,
    )
    return "/".join(str(fact) for fact in facts)
