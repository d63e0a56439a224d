"""Snapshots: the front and its hypervolume after every tell. One function, one write or read."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from autopeft.study.records import Snapshot
from storage import records
from storage.lookup import StudyKey
from storage.models import SnapshotRow


def add(
    session: Session, study: StudyKey, trials: int, front: Sequence[int], hypervolume: float
) -> Snapshot:
    """Appends a snapshot with the next index; the caller holds the study's row locked."""
    query = select(func.max(SnapshotRow.index)).where(SnapshotRow.study_id == study.id)
    last = session.scalar(query)
    row = SnapshotRow(
        study_id=study.id,
        index=0 if last is None else last + 1,
        trials=trials,
        front=list(front),
        hypervolume=hypervolume,
        at=records.now(),
    )
    session.add(row)
    session.flush()
    return records.snapshot_record(row)


def read(session: Session, study: StudyKey) -> list[Snapshot]:
    """All snapshots by index."""
    query = select(SnapshotRow).where(SnapshotRow.study_id == study.id).order_by(SnapshotRow.index)
    return [records.snapshot_record(row) for row in session.scalars(query)]


def last(session: Session, study: StudyKey) -> Snapshot | None:
    """The newest snapshot, or None before the first."""
    query = (
        select(SnapshotRow)
        .where(SnapshotRow.study_id == study.id)
        .order_by(SnapshotRow.index.desc())
        .limit(1)
    )
    row = session.scalars(query).one_or_none()
    return None if row is None else records.snapshot_record(row)
