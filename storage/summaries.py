"""All studies at a glance: a handful of statements, however many studies there are.

What `autopeft studies` and the dashboard's list show of a study is in its row, in an index over
the states of its trials, and in its newest snapshot; no trial is read but the best of each front.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from autopeft.study.records import Snapshot
from autopeft.study.summary import StudySummary
from storage import confirmations, lease, records
from storage.lookup import no_study
from storage.models import (
    AttemptRow,
    ConfirmationAttemptRow,
    OrphanRow,
    SnapshotRow,
    StudyRow,
    TrialRow,
)
from storage.trials import commonest_first, failures_of, states_of

_AT_ONCE = 500
"""Trials asked for by number in one statement."""

Counts = list[tuple[str, str | None, int]]
"""State, cause, how many."""


def read(session: Session, name: str | None = None) -> list[StudySummary]:
    """The summaries of all studies, oldest first, or of the one of that name.

    Raises:
        NotFoundError: There is none of that name.
    """
    query = select(StudyRow).order_by(StudyRow.id)
    rows = session.scalars(query if name is None else query.where(StudyRow.name == name)).all()
    if name is not None and not rows:
        raise no_study(session, name)
    one = rows[0].id if name is not None else None
    counts = _counts(session, one)
    fronts = _fronts(session, one)
    best = _best(session, fronts)
    holders = lease.holders(session, name)
    attempts = _attempts(session, one)
    of_seeds = _confirmation_attempts(session, one)
    orphans = _orphans(session, one)
    runs = confirmations.all_runs(session, one)
    openings = confirmations.all_openings(session, one)
    return [
        StudySummary(
            record=records.study_record(row),
            counts=states_of(counts[row.id]),
            failures=failures_of(counts[row.id]),
            last=fronts.get(row.id),
            best=best.get(row.id),
            holder=holders.get(row.id),
            attempts=attempts.get(row.id, {}),
            orphans=orphans.get(row.id, 0),
            confirmations=runs.get(row.id, ()),
            confirmation_attempts=of_seeds.get(row.id, {}),
            openings=openings.get(row.id, ()),
        )
        for row in rows
    ]


def _counts(session: Session, study: int | None) -> Mapping[int, Counts]:
    query = (
        select(TrialRow.study_id, TrialRow.state, TrialRow.cause, func.count())
        .where(*_of(TrialRow.study_id, study))
        .group_by(TrialRow.study_id, TrialRow.state, TrialRow.cause)
    )
    found: dict[int, Counts] = defaultdict(list)
    for study_id, state, cause, n in session.execute(query):
        found[study_id].append((state, cause, n))
    return found


def _attempts(session: Session, study: int | None) -> Mapping[int, dict[str, int]]:
    """How many attempts ended by each cause, commonest first."""
    query = (
        select(TrialRow.study_id, AttemptRow.cause, func.count())
        .join(TrialRow, TrialRow.id == AttemptRow.trial_id)
        .where(AttemptRow.cause.is_not(None), *_of(TrialRow.study_id, study))
        .group_by(TrialRow.study_id, AttemptRow.cause)
    )
    return _by_cause(session.execute(query))


def _confirmation_attempts(session: Session, study: int | None) -> Mapping[int, dict[str, int]]:
    """The same of runs with further seeds."""
    row = ConfirmationAttemptRow
    query = (
        select(row.study_id, row.cause, func.count())
        .where(row.cause.is_not(None), *_of(row.study_id, study))
        .group_by(row.study_id, row.cause)
    )
    return _by_cause(session.execute(query))


def _by_cause(counted: Iterable[Any]) -> Mapping[int, dict[str, int]]:
    found: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for study_id, cause, n in counted:
        found[study_id].append((str(cause), n))
    return {key: commonest_first(own) for key, own in found.items()}


def _orphans(session: Session, study: int | None) -> Mapping[int, int]:
    """How many results came too late."""
    query = (
        select(OrphanRow.study_id, func.count().label("n"))
        .where(*_of(OrphanRow.study_id, study))
        .group_by(OrphanRow.study_id)
    )
    return {row.study_id: row.n for row in session.execute(query)}


def _fronts(session: Session, study: int | None) -> dict[int, Snapshot]:
    """The newest snapshot of each study that has one."""
    last = (
        select(SnapshotRow.study_id, func.max(SnapshotRow.index).label("last"))
        .where(*_of(SnapshotRow.study_id, study))
        .group_by(SnapshotRow.study_id)
        .subquery()
    )
    query = select(SnapshotRow).join(
        last, (SnapshotRow.study_id == last.c.study_id) & (SnapshotRow.index == last.c.last)
    )
    return {row.study_id: records.snapshot_record(row) for row in session.scalars(query)}


def _best(session: Session, fronts: Mapping[int, Snapshot]) -> Mapping[int, Mapping[str, Any]]:
    """The objectives of each front's last trial."""
    wanted = [(study, last.front[-1]) for study, last in fronts.items() if last.front]
    found: dict[int, Mapping[str, Any]] = {}
    for some in (wanted[i : i + _AT_ONCE] for i in range(0, len(wanted), _AT_ONCE)):
        query = select(TrialRow.study_id, TrialRow.objectives).where(
            tuple_(TrialRow.study_id, TrialRow.number).in_(some)
        )
        found |= {row.study_id: row.objectives for row in session.execute(query)}
    return found


def _of(column: InstrumentedAttribute[int], study: int | None) -> list[ColumnElement[bool]]:
    """The condition that a row is of that study, or none."""
    return [] if study is None else [column == study]
