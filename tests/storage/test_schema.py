"""Opening databases of every revision: this release's, older, newer, and somebody else's.

Each file in `assets` is the SQL dump of one revision's database with one small study in it. When a
revision is added, the new one's dump is made from a fresh database and the old ones stay for good.
"""

import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, bindparam, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from autopeft.errors import StorageError, StorageVersionError
from autopeft.study.records import ImportanceRecord, Measurement, TrialState
from storage import SqlStore, engine, open_store, schema, upgrade
from storage.columns import UtcDateTime
from storage.lease import this_process
from storage.models import Base
from storage.place import parse_place

ASSETS = Path(__file__).parent / "assets"


def load(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript((ASSETS / f"{revision}.sql").read_text())
    connection.close()


def set_revision(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = ?", [revision])
    connection.commit()
    connection.close()


def _tables(connection: Connection) -> dict[str, dict[str, Any]]:
    """All that the database says of its tables, whatever the order of their columns."""
    seen = inspect(connection)
    kinds = {
        "columns": lambda name: [c | {"type": str(c["type"])} for c in seen.get_columns(name)],
        "primary key": lambda name: [seen.get_pk_constraint(name)],
        "foreign keys": seen.get_foreign_keys,
        "unique": seen.get_unique_constraints,
        "indexes": seen.get_indexes,
        "checks": seen.get_check_constraints,
    }  # fmt: skip
    return {
        name: {kind: sorted(map(str, get(name))) for kind, get in kinds.items()}
        for name in seen.get_table_names()
    }


def test_a_new_database_is_what_the_migrations_would_have_made(database_url: str) -> None:
    place = parse_place(database_url)
    writer = engine.writer(place, create=True)
    with writer.begin() as connection:
        schema._migrate(connection)
        migrated = _tables(connection)
        options: dict[str, Any] = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        Base.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE {schema.VERSION_TABLE}"))
    with open_store(database_url, create=True), writer.connect() as connection:
        assert _tables(connection) == migrated
    writer.dispose()


def test_the_listed_revisions_are_those_with_a_migration_and_a_database() -> None:
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == schema.REVISIONS
    assert sorted(file.stem for file in ASSETS.glob("*.sql")) == sorted(schema.REVISIONS)


def test_every_table_can_be_made_on_postgresql() -> None:
    dialect = postgresql.dialect()
    made = [str(CreateTable(t).compile(dialect=dialect)) for t in Base.metadata.sorted_tables]
    made += [
        str(CreateIndex(index).compile(dialect=dialect))
        for table in Base.metadata.sorted_tables
        for index in table.indexes
    ]
    text = "\n".join(made)
    assert "TIMESTAMP WITH TIME ZONE" in text
    assert text.count("ON DELETE CASCADE") == 9


@pytest.mark.parametrize("revision", schema.REVISIONS)
def test_a_database_of_every_revision_opens_after_an_upgrade(
    path: Path, url: str, revision: str
) -> None:
    load(path, revision)
    assert upgrade(url) == (revision, schema.REVISIONS[-1])
    with open_store(url) as store:
        assert [study.name for study in store.studies()] == ["small"]
        first, second = store.trials("small")
        assert (first.state, second.state) == (TrialState.COMPLETED, TrialState.RUNNING)
        assert first.configuration.hash == first.hash
        assert first.objectives == {"accuracy": 0.75}
        assert store.curve("small", 0) == [Measurement(10, "accuracy", "validation", 0.75, 1.0)]
        snapshot = store.last_snapshot("small")
        assert snapshot is not None
        assert (snapshot.front, snapshot.hypervolume) == ((0,), 0.25)
        store.keep_importance(ImportanceRecord("k", "b", "d", {}, {}, b"units"))
        assert store.importances(backbone="b", data="d")[0].units == b"units"
        token = store.claim("small", this_process(), 60.0)
        assert store.requeue_trials("small", token) == [1]
        store.add_confirmations("small", token, [0], [1, 2, 3])
        assert [run.replicate for run in store.confirmations("small")] == [1, 2, 3]
        assert store.add_opening("small", token, by="a@b", trials=[0], replicates=[3]).trials == (
            0,
        )


@pytest.mark.parametrize("revision", ["0004", "0005", "0006"])
def test_confirmations_and_openings_stay(path: Path, url: str, revision: str) -> None:
    load(path, revision)
    upgrade(url)
    with open_store(url) as store:
        done, waiting = store.confirmations("small")
        assert (done.state, done.values, done.test) == (
            TrialState.COMPLETED,
            {"accuracy": 0.7},
            {"accuracy": 0.65},
        )
        assert (waiting.replicate, waiting.state) == (2, TrialState.WAITING)
        (opening,) = store.openings("small")
        assert (opening.by, opening.trials, opening.again) == ("ann@host", (0,), False)
        found = [each["cause"] for each in store.confirmation_attempts("small", 0)]
        assert found == ([] if revision == "0004" else ["lost", None])


def make_of(url: str, revision: str) -> None:
    """A database as the migrations of that release make it."""
    with pytest.MonkeyPatch.context() as then:
        then.setattr(schema, "REVISIONS", schema.REVISIONS[: schema.REVISIONS.index(revision) + 1])
        then.setattr(schema, "_make", schema._migrate)
        schema.create(parse_place(url))


WHOLE_MAP = """
INSERT INTO importances (id, key, backbone, data, settings, facts, units, fine, created_at)
VALUES (:id, :key, 'b', 'd', '{"block": 8}', '{"examples": "3"}', :units, :fine, :at)
"""


def keep_old_maps(url: str, *maps: tuple[str, bytes | None]) -> None:
    """Maps as releases up to 0005 kept them, by key, with what is fine."""
    writer = engine.writer(parse_place(url))
    query = text(WHOLE_MAP).bindparams(bindparam("at", type_=UtcDateTime()))
    with writer.begin() as connection:
        for number, (key, fine) in enumerate(maps, 7):
            given = {"id": number, "key": key, "units": key.encode(), "fine": fine}
            connection.execute(query, {**given, "at": datetime.now(UTC)})
    writer.dispose()


@pytest.mark.parametrize("revision", ["0002", "0005"])
def test_maps_stay_whole(database_url: str, path: Path, revision: str) -> None:
    """Also those of several parts of 16 MiB, and those that were too large to be kept whole."""
    if database_url.startswith("sqlite"):
        load(path, revision)
    else:
        make_of(database_url, revision)
    fine = {"small": b"fine", "none": None, "even": os.urandom(1 << 24)}
    fine["large"] = os.urandom((2 << 24) + 1)
    keep_old_maps(database_url, *fine.items())
    upgrade(database_url)
    with open_store(database_url) as store:
        for key, content in fine.items():
            found = store.importance(key)
            assert found is not None
            assert found.fine == content, key
            assert (found.units, found.settings) == (key.encode(), {"block": 8})
        assert len(store.importances(backbone="b", data="d")) == len(fine)
        with store._reading() as session:
            query = text("SELECT max(length(content)), count(*) FROM importance_parts")
            assert session.execute(query).one() == (1 << 24, 5)
        store.keep_importance(ImportanceRecord("new", "b", "d", {}, {}, b"units", b"newer"))
        store.keep_importance(ImportanceRecord("large", "b", "d", {}, {}, b"units", b"newer"))
        assert [each.key for each in store.importances(backbone="b", data="d")][:2] == [
            "large", "new",
        ]  # fmt: skip


def test_a_map_of_several_parts_opens(path: Path, url: str) -> None:
    load(path, "0006")
    with open_store(url) as store:
        found = store.importance("5ca1e")
        assert found is not None
        assert (found.units, found.fine) == (b"units", b"\x00blocks and weights")


@pytest.mark.parametrize("revision", schema.REVISIONS)
def test_every_revision_on_postgresql_is_upgraded(
    postgresql_url: str, revision: str, small_study: Callable[[SqlStore], int]
) -> None:
    """Made by the migrations of that release; the tables afterwards are those of the models."""
    make_of(postgresql_url, revision)
    newest = schema.REVISIONS[-1]
    if revision != newest:
        with pytest.raises(StorageVersionError, match=rf"{revision}.*`autopeft db upgrade`"):
            open_store(postgresql_url)
    assert upgrade(postgresql_url) == (revision, newest)
    with open_store(postgresql_url) as store:
        small_study(store)
        assert len(store.trials("small")) == 2
        options: dict[str, Any] = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        with store._reader.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, Base.metadata) == []


def test_a_newer_schema_on_postgresql_is_refused_by_name(postgresql_url: str) -> None:
    with open_store(postgresql_url, create=True) as store, store._writing() as session:
        session.connection().exec_driver_sql(
            f"UPDATE {schema.VERSION_TABLE} SET version_num = '0042'"
        )
    for refused in (open_store, upgrade):
        with pytest.raises(StorageVersionError, match=r"0042.*upgrade autopeft"):
            refused(postgresql_url)


def test_somebody_elses_database_on_postgresql_is_left_alone(postgresql_url: str) -> None:
    writer = engine.writer(parse_place(postgresql_url))
    with writer.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE trials (number INTEGER)")
    for refused in (
        lambda: open_store(postgresql_url, create=True),
        lambda: upgrade(postgresql_url),
    ):
        with pytest.raises(StorageError, match="not one of autopeft"):
            refused()
    with writer.connect() as connection:
        assert inspect(connection).get_table_names() == ["trials"]
    writer.dispose()


def test_an_older_schema_is_refused_until_it_is_upgraded(
    store: SqlStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9999"))
    for options in ({}, {"read_only": True}, {"create": True}):
        with pytest.raises(StorageVersionError, match=r"0006.*9999.*`autopeft db upgrade`"):
            open_store(url, **options)


def test_a_newer_schema_is_refused_by_name(store: SqlStore, path: Path, url: str) -> None:
    set_revision(path, "0042")
    for refused in (open_store, upgrade):
        with pytest.raises(StorageVersionError, match=r"0042.*upgrade autopeft"):
            refused(url)


def test_creating_again_changes_nothing(
    store: SqlStore, url: str, small_study: Callable[[SqlStore], int]
) -> None:
    small_study(store)
    with open_store(url, create=True) as again:
        assert again.trials("small") == store.trials("small")
    assert upgrade(url) == (schema.REVISIONS[-1], schema.REVISIONS[-1])


@pytest.mark.parametrize("create", [False, True])
def test_somebody_elses_database_is_left_alone(path: Path, url: str, create: bool) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.execute("CREATE TABLE trials (number INTEGER)")
    connection.close()
    for refused in (lambda: open_store(url, create=create), lambda: upgrade(url)):
        with pytest.raises(StorageError, match="not one of autopeft"):
            refused()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (2,)
    connection.close()


def test_an_empty_file_is_filled_only_when_asked(path: Path, url: str) -> None:
    path.touch()
    with pytest.raises(StorageError, match="not one of autopeft"):
        open_store(url)
    with open_store(url, create=True) as store:
        assert store.studies() == []


def test_an_upgrade_creates_no_database(path: Path, url: str) -> None:
    with pytest.raises(StorageError, match="there is no database"):
        upgrade(url)
    assert not path.exists()


def test_an_upgrade_that_fails_changes_nothing(
    path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(path, schema.REVISIONS[-1])
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9999"))

    def half(connection: Any) -> None:
        connection.exec_driver_sql("DELETE FROM trials WHERE number = 1")
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")

    monkeypatch.setattr(schema, "_migrate", half)
    # The attempt of the deleted trial now refers to nothing.
    with pytest.raises(StorageError, match="nothing was changed"):
        upgrade(url)
    monkeypatch.undo()
    with open_store(url) as store:
        assert len(store.trials("small")) == 2
