"""The data that arms are trained on, with the importance map of each.

Learning rates are chosen on other training rows and other validation rows of TREC-6 than those
that are reported.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from autopeft.backbone.anatomy import Anatomy
from autopeft.study.definition import parse_definition
from benchmarks.quality.tasks import BATCH_SIZE, EPOCHS, TRAIN, VALIDATION, Task, drawn

if TYPE_CHECKING:
    from autopeft.training.loop import Trainer

TASKS = {
    task.name: task
    for task in (
        Task("trec6", "text", validation=None),
        Task("sst2", "sentence"),
        Task("agnews", "text", validation="test.csv"),
    )
}

TUNING = "trec6-tuning"
"""Where learning rates are chosen."""

TUNED = "trec6"

MAP_SEED = 0


@dataclass(frozen=True)
class Ground:
    """One task, ready to train on.

    Attributes:
        name: The task.
        trainer: Its backbone knows the importance map.
        constant: The accuracy of the constant predictor.
        digest: 12 hexadecimal digits of all that results depend on besides the configuration.
    """

    name: str
    trainer: "Trainer"
    constant: float
    digest: str

    @property
    def anatomy(self) -> Anatomy:
        """The backbone's, with its map."""
        return self.trainer.backbone.anatomy

    @property
    def steps(self) -> int:
        """Of a trial."""
        return self.trainer.settings.total_steps


def load_ground(name: str, *, data: Path, work: Path) -> Ground:
    """A task's data and backbone; its map comes from the folder's database, else is measured.

    Args:
        name: One of `TASKS`, or `TUNING`.
        data: Folder of all data sets.
        work: Where the rows that are used and the database lie.

    Raises:
        NotHereError: The data are not there.
    """
    folder = work / name
    if not (folder / "validation.csv").exists():
        write_rows(name, data=data, folder=folder)
    return ground_of(name, TASKS[TUNED if name == TUNING else name].study(folder, seed=0), work)


def ground_of(name: str, study: Mapping[str, Any], work: Path) -> Ground:
    """A study's data and backbone, as `load_ground`; its data lie in a folder of its name.

    Args:
        name: The task.
        study: A study file's content.
        work: Where the database lies.
    """
    from autopeft.api.loading import open_store
    from autopeft.api.materials import study_materials
    from autopeft.api.measuring import ensure_importance, importance_settings, with_importance
    from autopeft.training.setup import constant_quality

    definition, folder = parse_definition(study, where=name, base=None), work / name
    materials = study_materials(definition, folder, caches=False)
    store = open_store(f"sqlite:///{(work / 'importance.db').resolve()}", create=True)
    ensured = ensure_importance(
        materials, store, settings=importance_settings(definition), study=name
    )
    if ensured.record is not None:
        store.keep_importance(ensured.record)
    found = with_importance(materials, ensured.importance, seed=MAP_SEED)
    facts = [
        ensured.importance.fingerprint,
        found.backbone.fingerprint,
        found.data.fingerprint,
        str((EPOCHS, BATCH_SIZE, found.total_steps, found.trainer.settings.lr_scheduler)),
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return Ground(name, found.trainer, constant_quality("accuracy", found.data), digest)


def write_rows(name: str, *, data: Path, folder: Path) -> None:
    """Write the rows of a task that are used.

    Raises:
        NotHereError: The data are not there.
    """
    if name != TUNING:
        TASKS[name].materialise(data, folder)
        return
    task, reported = TASKS[TUNED], folder.with_name(f"{folder.name}-left-out")
    task.materialise(data, reported)
    used = pd.concat([pd.read_csv(reported / f"{part}.csv") for part in ("train", "validation")])
    rows = pd.read_csv(data / task.name / task.train).drop_duplicates(task.text)
    rest, held = drawn(rows[~rows[task.text].isin(used[task.text])], VALIDATION)
    _, train = drawn(rest, TRAIN)
    folder.mkdir(parents=True, exist_ok=True)
    train.to_csv(folder / "train.csv", index=False)
    held.to_csv(folder / "validation.csv", index=False)
