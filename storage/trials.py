"""Trials: their numbers, states, attempts and curves. Each function is one write or one read.

    waiting -> running -> completed | stopped | failed
       ^          |
       +----------+   lost with its coordinator, and queued again

The caller holds the study's row locked (`lease.guard`), so that numbers are given out one at a
time. Moving a trial against the arrows is a fault of the caller and raises ValueError.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.orm import Session, selectinload

from autopeft.study.records import (
    Measurement,
    NewTrial,
    TrialRecord,
    TrialState,
    TrialUpdate,
)
from storage import records
from storage.columns import finite
from storage.lookup import StudyKey, find_trial, next_number, no_trial
from storage.models import (
    AttemptRow,
    ConfirmationAttemptRow,
    MeasurementRow,
    OrphanRow,
    StudyRow,
    TrialRow,
)

LOST = "lost"
"""The cause of an attempt whose coordinator went away."""

# -- writing --------------------------------------------------------------------------------------


def add(session: Session, study: StudyKey, trials: Sequence[NewTrial]) -> list[TrialRecord]:
    """Adds waiting trials with the next free numbers."""
    first = next_number(session, study)
    rows = [records.trial_row(trial, study, first + i) for i, trial in enumerate(trials)]
    session.add_all(rows)
    session.flush()
    return [records.trial_record(row, study) for row in rows]


def start(
    session: Session,
    study: StudyKey,
    numbers: Sequence[int],
    runner: Mapping[str, Any] | None,
) -> None:
    """Marks trials running and opens an attempt for each, closing one that was open."""
    query = (
        select(TrialRow)
        .where(TrialRow.study_id == study.id, TrialRow.number.in_(numbers))
        .options(selectinload(TrialRow.attempts))
    )
    rows = session.scalars(query).all()
    missing = sorted(set(numbers) - {row.number for row in rows})
    if missing:
        raise no_trial(session, study, missing)
    at = records.now()
    for row in rows:
        if TrialState(row.state).final:
            raise ValueError(f"trial {row.number} is {row.state}: it cannot start again")
        close_attempts(row.attempts)
        row.state = TrialState.RUNNING.value
        row.attempt_count += 1
        row.started_at = at
        attempt = AttemptRow(number=row.attempt_count, started_at=at, runner=runner)
        row.attempts.append(attempt)


def record(
    session: Session,
    study: StudyKey,
    number: int,
    *,
    measurements: Sequence[Measurement],
    objectives: Mapping[str, float | None],
    rung: float | None,
    optimizer_steps: int,
) -> None:
    """Appends to a running trial's curve and sets its objectives; see `Store.record`.

    A repeated attempt starts below the rung that the one before it reached. Its measurements
    replace the old ones as they come, but the objectives stay those of the highest rung.
    """
    row = find_trial(session, study, number)
    if row.state != TrialState.RUNNING:
        raise ValueError(f"trial {number} is {row.state}: only a running trial is measured")
    _replace_measurements(session, row, measurements)
    row.optimizer_steps = optimizer_steps
    if objectives and (rung is None or row.rung is None or rung >= row.rung):
        row.objectives = dict(objectives)
    if rung is not None:
        row.rung = rung if row.rung is None else max(rung, row.rung)


def finish(
    session: Session,
    study: StudyKey,
    number: int,
    state: TrialState,
    *,
    cause: str | None,
    message: str | None,
    profile: Mapping[str, Any] | None,
    log: str | None = None,
) -> None:
    """Moves a trial to a final state and closes its attempt; a final one stays as it is."""
    if not state.final:
        raise ValueError(f"{state} is not a final state")
    row = find_trial(session, study, number)
    if TrialState(row.state).final:
        return
    row.state = state.value
    row.cause = cause
    row.message = message
    row.finished_at = records.now()
    if profile is not None:
        row.profile = dict(profile)
    close_attempts(_open_attempts(session, [row.id]), cause=cause, message=message, log=log)


def update(session: Session, study: StudyKey, updates: Sequence[TrialUpdate]) -> None:
    """Records and ends several trials; see `Store.update_trials`."""
    for each in updates:
        if each.optimizer_steps is not None:
            record(
                session,
                study,
                each.number,
                measurements=each.measurements,
                objectives=each.objectives,
                rung=each.rung,
                optimizer_steps=each.optimizer_steps,
            )
        if each.state is not None:
            finish(
                session,
                study,
                each.number,
                each.state,
                cause=each.cause,
                message=each.message,
                profile=each.profile,
                log=each.log,
            )
        elif each.profile is not None:
            _set_profile(find_trial(session, study, each.number), each.profile)


def _set_profile(row: TrialRow, profile: Mapping[str, Any]) -> None:
    if not TrialState(row.state).final:
        row.profile = dict(profile)


def requeue(
    session: Session,
    study: StudyKey,
    cause: str,
    *,
    numbers: Sequence[int] | None = None,
    message: str | None = None,
    log: str | None = None,
) -> list[int]:
    """Sets running trials back to waiting and closes their attempts; their numbers."""
    query = (
        select(TrialRow)
        .where(TrialRow.study_id == study.id, TrialRow.state == TrialState.RUNNING.value)
        .order_by(TrialRow.number)
    )
    if numbers is not None:
        query = query.where(TrialRow.number.in_(numbers))
    rows = session.scalars(query).all()
    for row in rows:
        row.state = TrialState.WAITING.value
    attempts = _open_attempts(session, [row.id for row in rows])
    close_attempts(attempts, cause=cause, message=message, log=log)
    return [row.number for row in rows]


def add_orphans(
    session: Session,
    study: StudyKey,
    token: int,
    updates: Sequence[TrialUpdate],
    *,
    replicate: int,
) -> None:
    """Keeps what a coordinator found that had lost its lease; whoever looks shall see it."""
    session.get_one(StudyRow, study.id).updated_at = records.now()
    session.add_all(
        [records.orphan_row(each, study, token, replicate=replicate) for each in updates]
    )


def orphans(session: Session, study: StudyKey) -> list[dict[str, Any]]:
    """What came too late, oldest first."""
    query = select(OrphanRow).where(OrphanRow.study_id == study.id).order_by(OrphanRow.id)
    return [records.orphan_dict(row) for row in session.scalars(query)]


def _open_attempts(session: Session, trial_ids: Sequence[int]) -> Sequence[AttemptRow]:
    query = select(AttemptRow).where(
        AttemptRow.trial_id.in_(trial_ids), AttemptRow.finished_at.is_(None)
    )
    return session.scalars(query).all()


def close_attempts(
    attempts: Sequence[AttemptRow | ConfirmationAttemptRow],
    *,
    cause: str | None = None,
    message: str | None = None,
    log: str | None = None,
) -> None:
    """Ends those that are open."""
    at = records.now()
    for attempt in attempts:
        if attempt.finished_at is None:
            attempt.finished_at = at
            attempt.cause = cause
            attempt.message = message
            attempt.log = log


def _replace_measurements(
    session: Session, row: TrialRow, measurements: Sequence[Measurement]
) -> None:
    """Deletes what has the same key, then inserts: the same SQL on every database."""
    latest = {(m.step, m.metric, m.split): m for m in measurements}
    if not latest:
        return
    same = delete(MeasurementRow).where(
        MeasurementRow.trial_id == row.id,
        MeasurementRow.step == bindparam("old_step"),
        MeasurementRow.metric == bindparam("old_metric"),
        MeasurementRow.split == bindparam("old_split"),
    )
    connection = session.connection()
    connection.execute(
        same,
        [{"old_step": s, "old_metric": m, "old_split": p} for s, m, p in latest],
    )
    connection.execute(
        insert(MeasurementRow),
        [
            {
                "trial_id": row.id,
                "step": m.step,
                "metric": m.metric,
                "split": m.split,
                "value": finite(m.value),
                "rung": m.rung,
            }
            for m in latest.values()
        ],
    )


# -- reading --------------------------------------------------------------------------------------


def read(session: Session, study: StudyKey) -> list[TrialRecord]:
    """All trials by number."""
    query = (
        select(*TrialRow.__table__.columns)
        .where(TrialRow.study_id == study.id)
        .order_by(TrialRow.number)
    )
    return [records.trial_record(row, study) for row in session.execute(query)]


def curve(session: Session, study: StudyKey, number: int) -> list[Measurement]:
    """A trial's measurements by step, metric and split."""
    query = (
        select(MeasurementRow)
        .where(MeasurementRow.trial_id == find_trial(session, study, number).id)
        .order_by(MeasurementRow.step, MeasurementRow.metric, MeasurementRow.split)
    )
    return [records.measurement_record(row) for row in session.scalars(query)]


def values_at(session: Session, study: StudyKey, step: int, metric: str) -> dict[int, float]:
    """The validation values of a metric at one step, by trial number; nulls are left out."""
    query = (
        select(TrialRow.number, MeasurementRow.value)
        .join(MeasurementRow, MeasurementRow.trial_id == TrialRow.id)
        .where(
            TrialRow.study_id == study.id,
            MeasurementRow.step == step,
            MeasurementRow.metric == metric,
            MeasurementRow.split == "validation",
            MeasurementRow.value.is_not(None),
        )
    )
    return {number: value for number, value in session.execute(query) if value is not None}


def attempts(session: Session, study: StudyKey, number: int) -> list[dict[str, Any]]:
    """A trial's attempts, oldest first."""
    query = (
        select(AttemptRow)
        .where(AttemptRow.trial_id == find_trial(session, study, number).id)
        .order_by(AttemptRow.number)
    )
    return [records.attempt_dict(row) for row in session.scalars(query)]


def commonest_first(found: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Counts by cause, the commonest first."""
    return dict(sorted(found, key=lambda item: (-item[1], item[0])))


def counts(session: Session, study: StudyKey) -> dict[TrialState, int]:
    """How many trials are in each state; every state is a key."""
    query = (
        select(TrialRow.state, func.count())
        .where(TrialRow.study_id == study.id)
        .group_by(TrialRow.state)
    )
    return states_of([(state, None, n) for state, n in session.execute(query)])


def states_of(counted: Iterable[tuple[str, str | None, int]]) -> dict[TrialState, int]:
    """Numbers of trials by state, from those by state and cause; every state is a key."""
    found = dict.fromkeys(TrialState, 0)
    for state, _, n in counted:
        found[TrialState(state)] += n
    return found


def failures_of(counted: Iterable[tuple[str, str | None, int]]) -> dict[str, int]:
    """Numbers of failed trials by cause, commonest first, from those by state and cause."""
    found: Counter[str] = Counter()
    for state, cause, n in counted:
        if state == TrialState.FAILED:
            found[cause or "error"] += n
    return commonest_first(list(found.items()))
