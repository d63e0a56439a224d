"""Studies from one database to another, whatever the two are.

A study is copied in one transaction: all of it is there, or nothing, so a copy that was cut short
is finished by the same command, which skips what is there already. Which tables belong to a study
is read off the models' foreign keys, so a new one of theirs needs nothing here. Row numbers are
given anew; everything that people or files refer to (names, trial numbers, times) stays, so that a
study goes on from the same artifacts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, Literal

from sqlalchemy import Column, Connection, Select, Table, func, insert, select
from sqlalchemy.orm import Session

from autopeft.errors import Fault, InputError, StudyMismatchError
from storage import engine, lease, schema
from storage.faults import storage_errors
from storage.filesystem import check_file
from storage.lookup import find_study
from storage.models import Base
from storage.place import Place, parse_place

BATCH = 1000
"""Rows that are read and written at once."""

STUDIES, MAPS = Base.metadata.tables["studies"], Base.metadata.tables["importances"]
PARTS = Base.metadata.tables["importance_parts"]
OWNED = tuple(
    table for table in Base.metadata.sorted_tables if table.foreign_keys and table is not PARTS
)
"""What belongs to a study, owners before what they own."""

_PLACE = "place"
_LEASE = ("lease_until_s", "lease_host", "lease_pid", "lease_boot")

Row = dict[str, Any]
Numbers = dict[str, dict[int, int]]
"""By table, the number that each row got for the one that it had."""

Progress = Callable[[str, int, int], None]
"""Told of a study's name, the rows that are done and those that there are."""


@dataclass(frozen=True)
class Copied:
    """What became of one study.

    Attributes:
        study: Its name.
        trials: How many trials it has.
        rows: How many rows it takes.
        result: Whether it was copied, or was there already, the same in every row.
    """

    study: str
    trials: int
    rows: int
    result: Literal["copied", "already there"]


def copy(
    source: str,
    target: str,
    studies: Sequence[str] = (),
    *,
    on_progress: Progress = lambda *_: None,
) -> tuple[list[Copied], int]:
    """Copies studies with all that belongs to them, and the importance maps of their data.

    Args:
        source: URL of the database to read; nothing in it changes.
        target: URL of the other; made where it is missing.
        studies: Names, or () for all studies and all maps.
        on_progress: Told of every batch.

    Returns:
        What became of each study, and how many maps were copied.

    Raises:
        InputError: Both URLs name one database.
        NotFoundError: The source has no study of that name.
        StudyHeldError: A coordinator runs the study.
        StudyMismatchError: The target has another study of that name; earlier ones are copied.
        StorageError: One of the databases cannot be used.
    """
    origin, goal = parse_place(source), parse_place(target)
    if (origin.path or origin.url) == (goal.path or goal.url):
        raise InputError(Fault("db copy", "DST", str(goal), f"another database than {origin}"))
    with _reading(origin) as reading:
        names = list(studies) or list(
            reading.execute(select(STUDIES.c.name).order_by(STUDIES.c.id)).scalars()
        )
        for name in names:
            with Session(reading) as session:
                find_study(session, name)
                lease.check_idle(session, name)
        with _writing(goal) as begin:
            found = [_copy_study(reading, begin, name, goal, on_progress) for name in names]
            return found, _copy_maps(reading, begin, names if studies else None)


@contextmanager
def _reading(place: Place) -> Iterator[Connection]:
    """A transaction that sees the database as it is now, however long it takes."""
    if place.path is not None:
        check_file(place.path, create=False, writable=False)
    opened = engine.reader(place)
    try:
        with storage_errors(place):
            schema.check(opened, place)
            with opened.connect() as connection:
                connection.info[_PLACE] = place
                yield connection
    finally:
        opened.dispose()


@contextmanager
def _writing(place: Place) -> Iterator[Callable[[], Any]]:
    """What begins a transaction in the target, made where it is missing."""
    if place.path is not None:
        check_file(place.path, create=True, writable=True)
    with storage_errors(place):
        schema.create(place)
        opened = engine.writer(place)
        try:
            schema.check(opened, place)
            yield opened.begin
        finally:
            opened.dispose()


# -- one study ------------------------------------------------------------------------------------


def _copy_study(
    reading: Connection,
    begin: Callable[[], Any],
    name: str,
    goal: Place,
    on_progress: Progress,
) -> Copied:
    (row,) = _rows(reading, select(STUDIES).where(STUDIES.c.name == name))
    counts = {table.name: _count(reading, table, row["id"]) for table in OWNED}
    total = sum(counts.values()) + 1
    done = 1
    result: Literal["copied", "already there"] = "already there"
    with begin() as writing:
        there = list(_rows(writing, select(STUDIES).where(STUDIES.c.name == name)))
        if there:
            _check_same(reading, row, writing, there[0], goal)
        else:
            result = "copied"
            numbers: Numbers = {STUDIES.name: {row["id"]: _insert_study(writing, row)}}
            for table in OWNED:
                for batch in _batches(_owned(reading, table, row["id"])):
                    _insert(writing, table, batch, numbers)
                    done += len(batch)
                    on_progress(name, done, total)
    on_progress(name, total, total)
    return Copied(name, counts["trials"], total, result)


def _insert_study(writing: Connection, row: Row) -> int:
    """The number of the study's new row; nobody holds it."""
    values = {key: value for key, value in row.items() if key != "id"} | dict.fromkeys(_LEASE)
    number: int = writing.execute(
        insert(STUDIES).values(values).returning(STUDIES.c.id)
    ).scalar_one()
    return number


def _insert(writing: Connection, table: Table, rows: list[Row], numbers: Numbers) -> None:
    """Inserts rows with their owners' new numbers; notes theirs, where they have numbers."""
    new = [_renumbered(table, row, numbers) for row in rows]
    if "id" not in table.c:
        writing.execute(insert(table), new)
        return
    query = insert(table).returning(table.c.id, sort_by_parameter_order=True)
    given = writing.execute(query, new).scalars().all()
    kept = numbers.setdefault(table.name, {})
    kept.update(zip((row["id"] for row in rows), given, strict=True))


def _renumbered(table: Table, row: Row, numbers: Numbers) -> Row:
    new = {key: value for key, value in row.items() if key != "id"}
    for key in table.foreign_keys:
        column = key.parent.name
        if row[column] is not None:
            new[column] = numbers[key.column.table.name][row[column]]
    return new


def _check_same(
    reading: Connection, ours: Row, writing: Connection, theirs: Row, goal: Place
) -> None:
    """Raises StudyMismatchError where the study of that name in the target differs in any row."""
    same = _without(ours, ("id", *_LEASE)) == _without(theirs, ("id", *_LEASE)) and all(
        left == right
        for table in OWNED
        for left, right in zip_longest(
            _comparable(reading, table, ours["id"]), _comparable(writing, table, theirs["id"])
        )
    )
    if not same:
        raise StudyMismatchError(
            Fault(
                str(goal),
                "study",
                ours["name"],
                "a name that no other study has there",
                "that one differs: delete it there, or leave this one out with --study",
            )
        )


def _comparable(connection: Connection, table: Table, study: int) -> Iterator[Row]:
    """A table's rows of one study, in the order of their owners, without numbers of rows."""
    keys = ("id", *(key.parent.name for key in table.foreign_keys))
    return (_without(row, keys) for row in _owned(connection, table, study))


def _without(row: Row, keys: Iterable[str]) -> Row:
    left = set(keys)
    return {key: value for key, value in row.items() if key not in left}


# -- reading --------------------------------------------------------------------------------------


def _owned(connection: Connection, table: Table, study: int) -> Iterator[Row]:
    """A table's rows of one study; rows of one owner together, owners in their order."""
    return _rows(connection, _of_study(select(table), table, study).order_by(*_order(table)))


def _count(connection: Connection, table: Table, study: int) -> int:
    query = _of_study(select(func.count()).select_from(table), table, study)
    found: int = connection.execute(query).scalar_one()
    return found


def _of_study(query: Select[Any], table: Table, study: int) -> Select[Any]:
    """The query's rows that belong to a study, by way of their owners."""
    key = _owner(table)
    while key.column.table is not STUDIES:
        query = query.join(key.column.table, key.parent == key.column)
        key = _owner(key.column.table)
    return query.where(key.parent == study)


def _owner(table: Table) -> Any:
    """The foreign key to what a row belongs to: the first of the table's columns that is one."""
    return next(key for column in table.columns for key in column.foreign_keys)


def _order(table: Table) -> list[Column[Any]]:
    owner = _owner(table).parent
    return [owner, *(column for column in table.primary_key.columns if column is not owner)]


def _rows(connection: Connection, query: Select[Any], at_once: int = BATCH) -> Iterator[Row]:
    # Errors name the source here; whatever else fails is the target's.
    errors = (
        storage_errors(connection.info[_PLACE]) if _PLACE in connection.info else nullcontext()
    )
    streamed = query.execution_options(yield_per=at_once)
    with errors, connection.execute(streamed) as result:
        for row in result.mappings():
            yield dict(row)


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


# -- importance maps ------------------------------------------------------------------------------


def _copy_maps(
    reading: Connection, begin: Callable[[], Any], studies: Sequence[str] | None
) -> int:
    """Copies the maps of some studies' backbones and data, or all; how many were not there yet."""
    query = select(MAPS.c.id, MAPS.c.key, MAPS.c.backbone, MAPS.c.data).order_by(MAPS.c.id)
    wanted = None if studies is None else _fingerprints(reading, studies)
    copied = 0
    for row in reading.execute(query).mappings().all():
        if wanted is not None and (row["backbone"], row["data"]) not in wanted:
            continue
        with begin() as writing:
            if writing.execute(select(MAPS.c.id).where(MAPS.c.key == row["key"])).first():
                continue
            numbers: Numbers = {}
            whole = list(_rows(reading, select(MAPS).where(MAPS.c.id == row["id"])))
            _insert(writing, MAPS, whole, numbers)
            parts = select(PARTS).where(PARTS.c.importance_id == row["id"])
            for part in _rows(reading, parts.order_by(PARTS.c.number), at_once=1):
                _insert(writing, PARTS, [part], numbers)
            copied += 1
    return copied


def _fingerprints(reading: Connection, studies: Sequence[str]) -> set[tuple[str, str]]:
    query = select(STUDIES.c.fingerprints).where(STUDIES.c.name.in_(studies))
    marks: Iterable[Mapping[str, str]] = reading.execute(query).scalars()
    return {(found.get("backbone", ""), found.get("data", "")) for found in marks}
