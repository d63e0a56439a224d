"""Between rows and records: the one place where a row becomes what the rest of autopeft sees."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from autopeft.configuration import Configuration
from autopeft.study.records import (
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    Snapshot,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
    TrialUpdate,
)
from storage.columns import finite
from storage.lookup import StudyKey
from storage.models import (
    AttemptRow,
    ConfirmationAttemptRow,
    MeasurementRow,
    OrphanRow,
    SnapshotRow,
    StudyRow,
    TrialRow,
)

NOTHING_SPENT = {"train_seconds": 0.0, "suggest_seconds": 0.0, "wall_seconds": 0.0}


def now() -> datetime:
    """The time that goes into a record."""
    return datetime.now(UTC)


# -- studies --------------------------------------------------------------------------------------


def study_row(study: NewStudy) -> StudyRow:
    """A new study's row; its seed is the definition's (0 where that names none)."""
    at = now()
    return StudyRow(
        name=study.name,
        state=StudyState.CREATED.value,
        seed=int(study.definition.get("study", {}).get("seed") or 0),
        definition=dict(study.definition),
        space_hash=study.space_hash,
        frame=[asdict(objective) for objective in study.frame],
        fingerprints=dict(study.fingerprints),
        versions=dict(study.versions),
        facts=dict(study.facts),
        spent=dict(NOTHING_SPENT),
        created_at=at,
        updated_at=at,
    )


def study_record(row: StudyRow) -> StudyRecord:
    """A study's record."""
    return StudyRecord(
        name=row.name,
        state=StudyState(row.state),
        definition=row.definition,
        space_hash=row.space_hash,
        frame=tuple(ObjectiveFrame(**objective) for objective in row.frame),
        fingerprints=row.fingerprints,
        versions=row.versions,
        facts=row.facts,
        spent=row.spent,
        stop_requested=row.stop_requested,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def added(spent: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """What was spent, with more added; a clock that gave no number adds nothing."""
    total = dict(spent)
    for key, amount in more.items():
        total[key] = total.get(key, 0.0) + (finite(amount) or 0.0)
    return total


# -- trials ---------------------------------------------------------------------------------------


def trial_row(trial: NewTrial, study: StudyKey, number: int) -> TrialRow:
    """A new trial's row, waiting."""
    return TrialRow(
        study_id=study.id,
        number=number,
        state=TrialState.WAITING.value,
        origin=trial.origin.value,
        baseline=trial.baseline,
        configuration=trial.configuration.to_dict(),
        hash=trial.configuration.hash,
        objectives={},
        known=dict(trial.known),
        trainable_params=trial.trainable_params,
        head_params=trial.head_params,
        rung=None,
        optimizer_steps=0,
        replicate=0,
        pack=trial.pack,
        attempt_count=0,
        cause=None,
        message=None,
        profile={},
        details=dict(trial.details),
        created_at=now(),
        started_at=None,
        finished_at=None,
    )


def trial_record(row: TrialRow | Any, study: StudyKey) -> TrialRecord:
    """A trial's record; `row` may be any row with the trial's columns."""
    return TrialRecord(
        study=study.name,
        number=row.number,
        state=TrialState(row.state),
        origin=Origin(row.origin),
        baseline=row.baseline,
        configuration=Configuration.from_dict(row.configuration),
        hash=row.hash,
        objectives=row.objectives,
        trainable_params=row.trainable_params,
        head_params=row.head_params,
        rung=row.rung,
        optimizer_steps=row.optimizer_steps,
        seed=study.seed,
        replicate=row.replicate,
        pack=row.pack,
        attempts=row.attempt_count,
        cause=row.cause,
        message=row.message,
        profile=row.profile,
        details=row.details,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def attempt_dict(row: AttemptRow | ConfirmationAttemptRow) -> dict[str, Any]:
    """An attempt as `Store.attempts` gives it."""
    return {
        "attempt": row.number,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "cause": row.cause,
        "message": row.message,
        "runner": row.runner,
        "log": row.log,
    }


def measurement_record(row: MeasurementRow) -> Measurement:
    """A measurement's record."""
    return Measurement(row.step, row.metric, row.split, row.value, row.rung)


def orphan_row(update: TrialUpdate, study: StudyKey, token: int, *, replicate: int) -> OrphanRow:
    """A row for what came too late."""
    content = {**asdict(update), "replicate": replicate}
    return OrphanRow(
        study_id=study.id, token=token, trial=update.number, content=content, at=now()
    )


def orphan_dict(row: OrphanRow) -> dict[str, Any]:
    """What came too late, as `Store.orphans` gives it."""
    return {"trial": row.trial, "token": row.token, "at": row.at, "content": row.content}


# -- the front ------------------------------------------------------------------------------------


def snapshot_record(row: SnapshotRow) -> Snapshot:
    """A snapshot's record."""
    return Snapshot(row.index, row.trials, tuple(row.front), row.hypervolume, row.at)
