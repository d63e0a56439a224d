"""The importance map of loaded materials: from the store where it is, else measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autopeft.backbone.importance import ImportanceMap
from autopeft.errors import Fault, InputError
from autopeft.importance.settings import (
    BLOCK_BYTES,
    WEIGHT_BYTES,
    Head,
    ImportanceSettings,
)
from autopeft.importance.stored import from_record
from autopeft.study.definition import StudyDefinition
from autopeft.study.progress import MEASURING, Listener, Progress, Silent
from autopeft.study.records import ImportanceRecord
from autopeft.study.sitting import Sitting
from autopeft.study.store import Store

if TYPE_CHECKING:
    from autopeft.training.setup import Materials

MEMORY_SHARE = 4
"""Sums of a pass may take this part of the memory that is free: a quarter."""


@dataclass(frozen=True)
class Ensured:
    """A map that is there now.

    Attributes:
        importance: The map.
        record: What the store has yet to keep of it; None where it came from there.
    """

    importance: ImportanceMap
    record: ImportanceRecord | None = None


def importance_settings(
    definition: StudyDefinition, *, examples: int | None = None, head: Head | None = None
) -> ImportanceSettings:
    """What a study's map is measured with, where nobody asks for other examples or head."""
    search = definition.search
    usual = ImportanceSettings(keep=search.importance_keep, block=search.importance_block)
    return replace(usual, examples=examples or usual.examples, head=head or usual.head)


def ensure_importance(
    materials: "Materials",
    store: Store | None,
    *,
    settings: ImportanceSettings,
    study: str = "",
    listener: Listener | None = None,
    sitting: Sitting | None = None,
    again: bool = False,
) -> Ensured:
    """The map of loaded materials with all its parts: from the store, else measured.

    Args:
        materials: Backbone and data.
        store: Where maps are kept; None where there is no database (yet).
        settings: What to measure.
        study: Named to the listener.
        listener: Watches.
        sitting: Asks for an early end, and counts what a measurement takes.
        again: Measure even where the store has it.

    Raises:
        InterruptedStudyError: Stopped meanwhile.
        BackboneError: Loss or gradients are not finite.
        InputError: More single weights are to be kept than memory holds.
    """
    from autopeft.importance.identity import fingerprint
    from autopeft.importance.measuring import measure, scoring_batches
    from autopeft.importance.stored import to_record

    listener, sitting = listener or Silent(), sitting or Sitting()
    trainer, data = materials.trainer, materials.data.fingerprint
    key = fingerprint(trainer, settings, data=data, rows=scoring_batches(trainer, settings))
    stored = None if store is None or again else store.importance(key)
    if stored is not None and stored.fine is not None:  # earlier releases kept no large ones
        return Ensured(loaded_map(stored))
    _check_room(materials, settings)
    listener.on_event(
        f"measuring the importance of every site on {min(settings.examples, len(trainer.train))} "
        "training examples, once for this backbone and these data"
    )
    with sitting.on_device():
        found = measure(
            trainer,
            settings,
            data=data,
            memory_bytes=_memory_bytes(materials),
            on_batch=_telling(study, listener, sitting),
        )
    record = to_record(
        found,
        settings,
        backbone=materials.backbone.fingerprint,
        data=data,
        batch_size=trainer.settings.batch_size,
    )
    listener.on_event(f"importance measured in {float(found.facts['seconds']):.1f} s")
    return Ensured(found, record)


def stored_map(definition: StudyDefinition, data: str, store: Store | None) -> ImportanceMap:
    """The stored map, with all its parts, of a study whose weights are not loaded.

    Args:
        definition: The study.
        data: The data's fingerprint.
        store: Where maps are kept, or None.

    Raises:
        InputError: There is none: nothing is measured here.
    """
    record = None if store is None else _stored_record(definition, data, store)
    where = f"study {definition.study.name}"
    if record is None or record.fine is None:
        # Earlier releases kept only the channels of large ones, which count as measured.
        again = "" if record is None else " --again"
        given = "a space that needs an importance map, which is not stored"
        hint = f"`autopeft importance STUDY.yaml{again}` measures and stores it"
        raise InputError(Fault(where, "space", given, "a measured one", hint))
    return loaded_map(record)


def _stored_record(
    definition: StudyDefinition, data: str, store: Store
) -> ImportanceRecord | None:
    from autopeft.backbone.loading import stored_fingerprint
    from autopeft.training.setup import backbone_request

    backbone = stored_fingerprint(backbone_request(definition.model))
    wanted = importance_settings(definition).to_dict(definition.training.batch_size)
    for each in store.importances(backbone=backbone, data=data):
        if each.settings == wanted:
            return store.importance(each.key)
    return None


def with_importance(materials: "Materials", found: ImportanceMap, *, seed: int) -> "Materials":
    """The materials, whose backbone knows the map and a study's random control."""
    from autopeft.importance.chance import with_random
    from autopeft.training.setup import with_backbone

    backbone = materials.backbone
    anatomy = replace(backbone.anatomy, importance=with_random(found, seed))
    return with_backbone(materials, replace(backbone, anatomy=anatomy))


def loaded_map(record: ImportanceRecord) -> ImportanceMap:
    """The map of a record; its facts say when it was stored."""
    found = from_record(record)
    at = "" if record.created_at is None else record.created_at.isoformat(timespec="seconds")
    return replace(found, facts={**found.facts, "stored_at": at})


def _check_room(materials: "Materials", settings: ImportanceSettings) -> None:
    """Weights and blocks that somebody asked for fit the memory that is left beside the sums."""
    import torch

    from autopeft.execution.fitting import free_bytes

    free = free_bytes(torch.device("cpu"))
    if not settings.asked() or free is None:
        return
    free -= free // MEMORY_SHARE
    shapes = list(materials.backbone.anatomy.shapes().values())
    weights, blocks = sum(settings.kept(shapes)), settings.blocks(shapes)
    needed = weights * WEIGHT_BYTES + blocks * BLOCK_BYTES
    if needed > free:
        given = f"{weights:,} single weights and {blocks:,} blocks, {needed / 1e9:.1f} GB"
        allowed = f"at most {free / 1e9:.1f} GB, which are free beside what is measured"
        hint = "a lower search.importance_keep (or density), a larger importance_block (or block)"
        raise InputError(Fault("importance", "", given, allowed, hint))


def _memory_bytes(materials: "Materials") -> int:
    from autopeft.execution.fitting import free_bytes
    from autopeft.importance.measuring import MEMORY_BYTES

    free = free_bytes(materials.trainer.device)
    return MEMORY_BYTES if free is None else free // MEMORY_SHARE


def _telling(study: str, listener: Listener, sitting: Sitting) -> Callable[[int, int], None]:
    def on_batch(done: int, total: int) -> None:
        sitting.heed(study, "nothing of its importance is stored")
        listener.on_progress(Progress(study, MEASURING, 0, 0, step=done, total_steps=total))

    return on_batch
