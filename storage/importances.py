"""Importance maps: written once, read by every study. One function, one write or read."""

from importlib import import_module

from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

from autopeft.study.records import ImportanceRecord
from storage.models import ImportanceRow
from storage.records import now


def keep(session: Session, record: ImportanceRecord) -> None:
    """Stores a map; one of the same key is replaced, whoever else stores it at the same time."""
    values = {
        "key": record.key,
        "backbone": record.backbone,
        "data": record.data,
        "settings": dict(record.settings),
        "facts": dict(record.facts),
        "units": record.units,
        "fine": record.fine,
        "created_at": now(),
    }
    # The package of every dialect is slow to import, and readers need that of their own alone.
    dialect = import_module(f"sqlalchemy.dialects.{session.get_bind().dialect.name}")
    query = dialect.insert(ImportanceRow).values(values)
    session.execute(query.on_conflict_do_update(index_elements=["key"], set_=values))


def find(session: Session, key: str) -> ImportanceRecord | None:
    """The map of that key, or None."""
    row = session.scalars(select(ImportanceRow).where(ImportanceRow.key == key)).one_or_none()
    return None if row is None else _record(row, row.fine)


def read(session: Session, backbone: str, data: str) -> list[ImportanceRecord]:
    """All maps of a backbone and data, newest first, without what is fine: it is large."""
    columns = (column for column in ImportanceRow.__mapper__.column_attrs if column.key != "fine")
    query = (
        select(ImportanceRow)
        .where(ImportanceRow.backbone == backbone, ImportanceRow.data == data)
        .order_by(ImportanceRow.created_at.desc(), ImportanceRow.id.desc())
        .options(load_only(*(getattr(ImportanceRow, c.key) for c in columns), raiseload=True))
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
