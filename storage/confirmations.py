"""Confirmations and openings of the test split. Each function is one write or one read.

    waiting -> running -> completed | failed
       ^          |          |
       +----------+----------+   lost with its coordinator; failed by the machine

The caller of a write holds the study's row locked (`lease.guard`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from autopeft.study.confirmation import DIVERGED, FIRST_REPLICATE, ConfirmationRun, Opening
from autopeft.study.records import TrialState, TrialUpdate
from storage import records
from storage.columns import finite
from storage.lookup import StudyKey, no_trial
from storage.models import ConfirmationAttemptRow, ConfirmationRow, OpeningRow, TrialRow
from storage.trials import close_attempts

# -- runs -----------------------------------------------------------------------------------------


def add(
    session: Session, study: StudyKey, trials: Sequence[int], replicates: Sequence[int]
) -> None:
    """Adds the runs that are not there; those that the machine failed wait again."""
    known = set(
        session.scalars(
            select(TrialRow.number).where(
                TrialRow.study_id == study.id, TrialRow.number.in_(trials)
            )
        )
    )
    if missing := sorted(set(trials) - known):
        raise no_trial(session, study, missing)
    if min(replicates, default=FIRST_REPLICATE) < FIRST_REPLICATE:
        raise ValueError("replicate 0 is the search's: it chose the trial")
    stored = {(row.trial, row.replicate): row for row in _rows(session, study)}
    for trial in trials:
        for replicate in replicates:
            row = stored.get((trial, replicate))
            if row is None:
                session.add(_new(study, trial, replicate))
            elif row.state == TrialState.FAILED and row.cause != DIVERGED:
                row.state = TrialState.WAITING.value
                row.cause = row.message = row.finished_at = None


def start(
    session: Session,
    study: StudyKey,
    replicate: int,
    trials: Sequence[int],
    runner: Mapping[str, Any] | None,
) -> None:
    """Marks runs of one replicate running and opens an attempt for each, closing an open one."""
    rows = _of(session, study, replicate, trials)
    close_attempts(_open_attempts(session, study, rows.values()))
    for row in rows.values():
        if row.state not in (TrialState.WAITING, TrialState.RUNNING):
            raise ValueError(f"replicate {replicate} of trial {row.trial} is {row.state}")
        row.state = TrialState.RUNNING.value
        row.attempt_count += 1
        session.add(
            ConfirmationAttemptRow(
                study_id=study.id,
                trial=row.trial,
                replicate=replicate,
                number=row.attempt_count,
                started_at=records.now(),
                runner=runner,
            )
        )


def update(
    session: Session, study: StudyKey, replicate: int, updates: Sequence[TrialUpdate]
) -> None:
    """Records and ends runs; see `Store.update_confirmations`."""
    rows = _of(session, study, replicate, [each.number for each in updates])
    for each in updates:
        row = rows[each.number]
        if TrialState(row.state).final:
            continue
        if each.optimizer_steps is not None:
            row.optimizer_steps = each.optimizer_steps
        if each.profile is not None:
            row.profile = dict(each.profile)
        measured = {
            point.metric: finite(point.value)
            for point in each.measurements
            if point.split == "validation" and point.rung is not None
        }
        row.validation = {**row.validation, **measured}
        if each.state is not None:
            row.state = each.state.value
            row.cause, row.message = each.cause, each.message
            row.finished_at = records.now()
            open_ones = _open_attempts(session, study, [row])
            close_attempts(open_ones, cause=each.cause, message=each.message, log=each.log)


def requeue(
    session: Session,
    study: StudyKey,
    trials: Sequence[int] | None = None,
    *,
    cause: str,
    message: str | None = None,
    log: str | None = None,
) -> list[int]:
    """Sets running runs (of these trials) back to waiting, their attempts closed; the trials."""
    running = [row for row in _rows(session, study) if row.state == TrialState.RUNNING]
    lost = [row for row in running if trials is None or row.trial in trials]
    for row in lost:
        row.state = TrialState.WAITING.value
    close_attempts(_open_attempts(session, study, lost), cause=cause, message=message, log=log)
    return sorted({row.trial for row in lost})


def attempts(session: Session, study: StudyKey, trial: int) -> list[dict[str, Any]]:
    """The attempts of a trial's runs, by replicate and number."""
    query = (
        select(ConfirmationAttemptRow)
        .where(ConfirmationAttemptRow.study_id == study.id, ConfirmationAttemptRow.trial == trial)
        .order_by(ConfirmationAttemptRow.replicate, ConfirmationAttemptRow.number)
    )
    return [{"seed": row.replicate, **records.attempt_dict(row)} for row in session.scalars(query)]


def read(session: Session, study: StudyKey) -> list[ConfirmationRun]:
    """All runs by trial and replicate."""
    return [_run(row) for row in _rows(session, study)]


def all_runs(session: Session, study_id: int | None) -> dict[int, list[ConfirmationRun]]:
    """The runs of one study, or of all, by its key, in the order of `read`."""
    query = select(ConfirmationRow).order_by(ConfirmationRow.trial, ConfirmationRow.replicate)
    found: dict[int, list[ConfirmationRun]] = defaultdict(list)
    for row in session.scalars(_within(query, ConfirmationRow.study_id, study_id)):
        found[row.study_id].append(_run(row))
    return found


# -- the test split -------------------------------------------------------------------------------


def open_test(
    session: Session,
    study: StudyKey,
    by: str,
    trials: Sequence[int],
    replicates: Sequence[int],
) -> Opening:
    """Records an opening with the next index."""
    query = select(func.max(OpeningRow.index)).where(OpeningRow.study_id == study.id)
    last = session.scalar(query)
    row = OpeningRow(
        study_id=study.id,
        index=0 if last is None else last + 1,
        at=records.now(),
        opened_by=by,
        trials=sorted(trials),
        replicates=sorted(replicates),
        again=last is not None,
    )
    session.add(row)
    session.flush()
    return _opening(row)


def openings(session: Session, study: StudyKey) -> list[Opening]:
    """All openings, oldest first."""
    query = select(OpeningRow).where(OpeningRow.study_id == study.id).order_by(OpeningRow.index)
    return [_opening(row) for row in session.scalars(query)]


def all_openings(session: Session, study_id: int | None) -> dict[int, list[Opening]]:
    """The openings of one study, or of all, by its key, oldest first."""
    query = select(OpeningRow).order_by(OpeningRow.index)
    found: dict[int, list[Opening]] = defaultdict(list)
    for row in session.scalars(_within(query, OpeningRow.study_id, study_id)):
        found[row.study_id].append(_opening(row))
    return found


def keep_test(
    session: Session,
    study: StudyKey,
    replicate: int,
    values: Mapping[int, Mapping[str, float | None]],
) -> None:
    """Stores test metrics; values that are there stay."""
    recorded = openings(session, study)
    rows = _of(session, study, replicate, list(values))
    for trial, measured in values.items():
        if not any(opening.covers(trial, replicate) for opening in recorded):
            raise ValueError(f"no opening covers replicate {replicate} of trial {trial}")
        if rows[trial].test is None:
            rows[trial].test = {name: finite(value) for name, value in measured.items()}


# -- parts ----------------------------------------------------------------------------------------


def _within(query: Select[Any], column: InstrumentedAttribute[int], study: int | None) -> Any:
    return query if study is None else query.where(column == study)


def _rows(session: Session, study: StudyKey) -> Sequence[ConfirmationRow]:
    query = select(ConfirmationRow).where(ConfirmationRow.study_id == study.id)
    return session.scalars(query.order_by(ConfirmationRow.trial, ConfirmationRow.replicate)).all()


def _of(
    session: Session, study: StudyKey, replicate: int, trials: Sequence[int]
) -> dict[int, ConfirmationRow]:
    rows = {row.trial: row for row in _rows(session, study) if row.replicate == replicate}
    if missing := sorted(set(trials) - set(rows)):
        raise ValueError(f"trials {missing} have no replicate {replicate}")
    return {trial: rows[trial] for trial in trials}


def _open_attempts(
    session: Session, study: StudyKey, runs: Iterable[ConfirmationRow]
) -> list[ConfirmationAttemptRow]:
    query = select(ConfirmationAttemptRow).where(
        ConfirmationAttemptRow.study_id == study.id,
        ConfirmationAttemptRow.finished_at.is_(None),
    )
    keys = {(run.trial, run.replicate) for run in runs}
    return [row for row in session.scalars(query) if (row.trial, row.replicate) in keys]


def _new(study: StudyKey, trial: int, replicate: int) -> ConfirmationRow:
    return ConfirmationRow(
        study_id=study.id,
        trial=trial,
        replicate=replicate,
        state=TrialState.WAITING.value,
        validation={},
        test=None,
        optimizer_steps=0,
        attempt_count=0,
        cause=None,
        message=None,
        profile={},
        created_at=records.now(),
        finished_at=None,
    )


def _run(row: ConfirmationRow) -> ConfirmationRun:
    return ConfirmationRun(
        trial=row.trial,
        replicate=row.replicate,
        state=TrialState(row.state),
        values=row.validation,
        test=row.test,
        optimizer_steps=row.optimizer_steps,
        attempts=row.attempt_count,
        cause=row.cause,
        message=row.message,
        profile=row.profile,
        finished_at=row.finished_at,
    )


def _opening(row: OpeningRow) -> Opening:
    return Opening(
        row.index, row.at, row.opened_by, tuple(row.trials), tuple(row.replicates), row.again
    )
