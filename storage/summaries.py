"""All studies at a glance: a handful of statements, however many studies there are.

What `autopeft studies` and the dashboard's list show of a study is in its row, in an index over
the states of its trials, and in its newest snapshot; no trial is read but those of the fronts.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import Session

from autopeft.study.records import Snapshot, StudySummary
from storage import lease, records
from storage.lookup import no_study
from storage.models import SnapshotRow, StudyRow, TrialRow
from storage.trials import failures_of, states_of

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
    members = _members(session, fronts)
    holders = lease.holders(session, name)
    return [
        StudySummary(
            record=records.study_record(row),
            counts=states_of(counts[row.id]),
            failures=failures_of(counts[row.id]),
            last=fronts.get(row.id),
            members=tuple(members[row.id]),
            holder=holders.get(row.id),
        )
        for row in rows
    ]


def _counts(session: Session, study: int | None) -> Mapping[int, Counts]:
    query = select(TrialRow.study_id, TrialRow.state, TrialRow.cause, func.count()).group_by(
        TrialRow.study_id, TrialRow.state, TrialRow.cause
    )
    found: dict[int, Counts] = defaultdict(list)
    for study_id, *counted in session.execute(_of(query, TrialRow.study_id, study)):
        found[study_id].append((counted[0], counted[1], counted[2]))
    return found


def _fronts(session: Session, study: int | None) -> dict[int, Snapshot]:
    """The newest snapshot of each study that has one."""
    newest = select(SnapshotRow.study_id, func.max(SnapshotRow.index).label("last")).group_by(
        SnapshotRow.study_id
    )
    last = _of(newest, SnapshotRow.study_id, study).subquery()
    query = select(SnapshotRow).join(
        last, (SnapshotRow.study_id == last.c.study_id) & (SnapshotRow.index == last.c.last)
    )
    return {row.study_id: records.snapshot_record(row) for row in session.scalars(query)}


def _members(
    session: Session, fronts: Mapping[int, Snapshot]
) -> Mapping[int, list[Mapping[str, float | None]]]:
    """The objectives of each front's trials, in its order."""
    wanted = [(study, number) for study, last in fronts.items() for number in last.front]
    objectives = dict(_objectives(session, wanted))
    found: dict[int, list[Mapping[str, float | None]]] = defaultdict(list)
    for study, number in wanted:
        found[study].append(objectives[study, number])
    return found


def _objectives(
    session: Session, wanted: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Mapping[str, float | None]]]:
    key = (TrialRow.study_id, TrialRow.number)
    for some in (wanted[i : i + _AT_ONCE] for i in range(0, len(wanted), _AT_ONCE)):
        query = select(*key, TrialRow.objectives).where(tuple_(*key).in_(some))
        for study, number, objectives in session.execute(query):
            yield (study, number), objectives


def _of(query: Select[Any], column: Any, study: int | None) -> Select[Any]:
    return query if study is None else query.where(column == study)
