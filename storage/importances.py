"""Importance maps: written once, read by every study. One function, one write or read."""

import io
from importlib import import_module

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from autopeft.study.records import ImportanceRecord
from storage.models import ImportancePartRow, ImportanceRow
from storage.records import now

PART_BYTES = 1 << 24
"""What is fine has no limit, but a database's values have (1 GB), and each is held in memory
whole. A part of 16 MiB also passes a slow line before the server takes its writer for frozen."""


def keep(session: Session, record: ImportanceRecord) -> None:
    """Stores a map; one of the same key is replaced, whoever else stores it at the same time."""
    values = {
        "key": record.key,
        "backbone": record.backbone,
        "data": record.data,
        "settings": dict(record.settings),
        "facts": dict(record.facts),
        "units": record.units,
        "created_at": now(),
    }
    # The package of every dialect is slow to import, and readers need that of their own alone.
    dialect = import_module(f"sqlalchemy.dialects.{session.get_bind().dialect.name}")
    query = dialect.insert(ImportanceRow).values(values).returning(ImportanceRow.id)
    number = session.scalar(query.on_conflict_do_update(index_elements=["key"], set_=values))
    _replace_parts(session, number, record.fine or b"")


def _replace_parts(session: Session, importance: int, fine: bytes) -> None:
    owner, connection = ImportancePartRow.importance_id, session.connection()
    connection.execute(delete(ImportancePartRow).where(owner == importance))
    for number, start in enumerate(range(0, len(fine), PART_BYTES)):
        content = fine[start : start + PART_BYTES]
        # Not by `values`: SQLAlchemy would keep the first part with the compiled statement.
        row = {"importance_id": importance, "number": number, "content": content}
        connection.execute(insert(ImportancePartRow), row)


def find(session: Session, key: str) -> ImportanceRecord | None:
    """The map of that key, or None."""
    row = session.scalars(select(ImportanceRow).where(ImportanceRow.key == key)).one_or_none()
    return None if row is None else _record(row, _joined_parts(session, row.id))


def _joined_parts(session: Session, importance: int) -> bytes | None:
    query = (
        select(ImportancePartRow.content)
        .where(ImportancePartRow.importance_id == importance)
        .order_by(ImportancePartRow.number)
        .execution_options(yield_per=1)
    )
    joined = io.BytesIO()
    for content in session.scalars(query):
        joined.write(content)
    return joined.getvalue() or None


def read(session: Session, backbone: str, data: str) -> list[ImportanceRecord]:
    """All maps of a backbone and data, newest first, without what is fine: it is large."""
    query = (
        select(ImportanceRow)
        .where(ImportanceRow.backbone == backbone, ImportanceRow.data == data)
        .order_by(ImportanceRow.created_at.desc(), ImportanceRow.id.desc())
    )
    return [_record(row, None) for row in session.scalars(query)]


def _record(row: ImportanceRow, fine: bytes | None) -> ImportanceRecord:
    return ImportanceRecord(
        key=row.key,
        backbone=row.backbone,
        data=row.data,
        settings=row.settings,
        facts=row.facts,
        units=row.units,
        fine=fine,
        created_at=row.created_at,
    )
