"""What the Store's contract leaves to SQLite: locks, read-only opening, and faults in one line."""

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from autopeft.errors import StorageError
from autopeft.study.records import ImportanceRecord, NewStudy, TrialState
from storage import SqlStore, engine, open_store
from storage.columns import UtcDateTime, plain
from storage.faults import storage_error
from storage.lease import this_process
from storage.place import parse_place

Fill = Callable[[SqlStore], int]


@contextmanager
def one_line(match: str) -> Iterator[None]:
    with pytest.raises(StorageError, match=match) as raised:
        yield
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 3


def pragma(path: Path, name: str) -> Any:
    connection = sqlite3.connect(path)
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    connection.close()
    return value


# -- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_without_create_nothing_is_created(path: Path, url: str, read_only: bool) -> None:
    with one_line(f"{path}: there is no database; .*AUTOPEFT_STORAGE"):
        open_store(url, read_only=read_only)
    assert not path.exists()


def test_a_folder_or_a_missing_one(tmp_path: Path) -> None:
    with one_line("it is a folder"):
        open_store(f"sqlite:///{tmp_path}", create=True)
    with one_line(f"the folder {tmp_path / 'no'} does not exist"):
        open_store(f"sqlite:///{tmp_path / 'no' / 'a.db'}", create=True)


@pytest.mark.parametrize("options", [{}, {"create": True}, {"read_only": True}])
def test_a_file_that_is_no_database(path: Path, url: str, options: dict[str, bool]) -> None:
    path.write_text("study: {name: rte}\n" * 100)
    with one_line("it is not a SQLite database"):
        open_store(url, **options)
    assert path.read_text().startswith("study:")


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1 & é.db"
    with open_store(f"sqlite:///{path}".replace("%", "%25"), create=True) as store:
        assert store.place.path == path
        assert store.studies() == []
    assert path.exists()


def test_an_unwritable_folder(
    path: Path,
    url: str,
    without_privileges: Callable[[Path], AbstractContextManager[None]],
) -> None:
    open_store(url, create=True).close()
    with without_privileges(path.parent):
        with one_line("cannot be written"):
            open_store(url)
        with one_line("cannot be written"):
            open_store(f"sqlite:///{path.parent / 'new.db'}", create=True)
        # The write-ahead log needs the folder even of a reader, while nobody writes.
        with one_line("SQLite must write there even to read"):
            open_store(url, read_only=True)


def test_postgresql_without_its_driver_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with one_line(r"pip install 'autopeft\[postgres\]'"):
        open_store("postgres://ann:s3cr3t@db/studies")


# -- locks and journals ---------------------------------------------------------------------------


def test_a_local_database_keeps_a_write_ahead_log_and_foreign_keys(
    store: SqlStore, path: Path
) -> None:
    assert pragma(path, "journal_mode") == "wal"
    with store._writing() as session:
        assert session.connection().exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert session.connection().exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_a_network_file_system_keeps_a_rollback_journal_and_warns(
    store: SqlStore,
    path: Path,
    url: str,
    small_study: Fill,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.close()
    assert pragma(path, "journal_mode") == "wal"
    monkeypatch.setattr(engine, "network_file_system", lambda _path: "nfs4")
    with caplog.at_level(logging.WARNING), open_store(url) as remote:
        small_study(remote)
        assert len(remote.trials("small")) == 2
    assert "nfs4" in caplog.text
    assert str(path) in caplog.text
    assert pragma(path, "journal_mode") == "delete"


def test_a_locked_database_is_waited_for(store: SqlStore, path: Path, small_study: Fill) -> None:
    small_study(store)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.execute, ["COMMIT"])
    timer.start()
    store.request_stop("small")
    timer.join()
    other.close()
    assert store.study("small").stop_requested


def test_a_database_that_stays_locked_is_one_line(
    store: SqlStore, path: Path, url: str, small_study: Fill
) -> None:
    token = small_study(store)
    other = sqlite3.connect(path, isolation_level=None)
    with open_store(f"{url}?timeout=0.1") as impatient:
        other.execute("BEGIN IMMEDIATE")
        with one_line(f"{path}: another process kept it locked for longer than 0.1 s"):
            impatient.request_stop("small")
        assert len(impatient.trials("small")) == 2
        other.execute("COMMIT")
        impatient.renew("small", token, 60.0)
    other.close()


def test_a_full_disk_loses_nothing_that_was_stored(store: SqlStore, small_study: Fill) -> None:
    token = small_study(store)
    with store._writing() as session:
        connection = session.connection()
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with one_line("the disk is full; free some space"):
        store.update_study("small", token, definition={"text": "x" * 100_000})
    with store._writing() as session:
        session.connection().exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.study("small").definition == {"study": {"name": "small", "seed": 3}}
    store.update_study("small", token, definition={"text": "x" * 100_000})
    assert len(store.study("small").definition["text"]) == 100_000


def test_a_database_that_goes_away_is_noticed_and_can_come_back(
    store: SqlStore, path: Path, small_study: Fill
) -> None:
    token = small_study(store)
    store.trials("small")
    away = path.with_name("away.db")
    path.rename(away)
    with one_line("deleted, moved or replaced"):
        store.request_stop("small")
    with one_line("deleted, moved or replaced"):
        store.trials("small")
    with one_line("check that the file is there"):
        store.request_stop("small")
    assert not path.exists()
    away.rename(path)
    store.renew("small", token, 60.0)
    assert len(store.trials("small")) == 2


# -- reading only ---------------------------------------------------------------------------------


def test_a_reader_sees_a_running_search_and_cannot_write(
    store: SqlStore, url: str, small_study: Fill
) -> None:
    token = small_study(store)
    with open_store(url, read_only=True) as reader:
        assert reader.trials("small") == store.trials("small")
        store.request_stop("small")
        assert reader.study("small").stop_requested
        writes = [
            lambda: reader.create_study(store.study("small")),  # type: ignore[arg-type]
            lambda: reader.update_study("small", token),
            lambda: reader.request_stop("small"),
            lambda: reader.delete_study("small"),
            lambda: reader.claim("small", this_process(), 60.0),
            lambda: reader.renew("small", token, 60.0),
            lambda: reader.release("small", token),
            lambda: reader.add_trials("small", token, []),
            lambda: reader.start_trials("small", token, [1]),
            lambda: reader.record(
                "small",
                token,
                1,
                measurements=[],
                objectives={},
                rung=None,
                optimizer_steps=1,
            ),
            lambda: reader.finish_trial("small", token, 1, TrialState.STOPPED),
            lambda: reader.update_trials("small", token, []),
            lambda: reader.requeue_trials("small", token),
            lambda: reader.add_snapshot("small", token, trials=1, front=[], hypervolume=0.0),
            lambda: reader.keep_importance(ImportanceRecord("k", "b", "d", {}, {}, b"")),
        ]
        for write in writes:
            with one_line("reading only"):
                write()


def test_the_readers_connection_itself_refuses_to_write(store: SqlStore) -> None:
    with one_line("readonly database"), store._reading() as session:
        session.connection().exec_driver_sql("DELETE FROM studies")


def test_a_reader_neither_waits_for_a_writer_nor_hinders_it(
    store: SqlStore, url: str, small_study: Fill
) -> None:
    token = small_study(store)
    with open_store(f"{url}?timeout=0", read_only=True) as reader:
        with store._writing() as session:
            session.connection().exec_driver_sql("DELETE FROM trials")
            assert len(reader.trials("small")) == 2
        assert reader.trials("small") == []
        with reader._reading() as session:
            session.connection().exec_driver_sql("SELECT * FROM studies").all()
            store.renew("small", token, 60.0)


def test_a_reader_reads_what_a_killed_writer_left_in_the_log(path: Path, url: str) -> None:
    code = (
        "import os, sys\n"
        "from autopeft.study.records import NewStudy\n"
        "from storage import open_store\n"
        "store = open_store(sys.argv[1], create=True)\n"
        "store.create_study(NewStudy('late', {}, '', (), {}, {}, {}))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, url], check=False)
    assert killed.returncode == -9
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    with open_store(url, read_only=True) as reader:
        assert [study.name for study in reader.studies()] == ["late"]
    assert pragma(path, "integrity_check") == "ok"


# -- columns and queries --------------------------------------------------------------------------


def test_times_are_utc_whatever_the_zone_and_never_naive(store: SqlStore) -> None:
    column = UtcDateTime()
    dialect = store._reader.dialect
    east = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert column.process_bind_param(east, dialect) == datetime(2024, 5, 1, 10, tzinfo=UTC)
    back = column.process_result_value(datetime(2024, 5, 1, 10), dialect)
    assert back == east
    assert back is not None
    assert back.tzinfo is UTC
    with pytest.raises(ValueError, match="without a zone"):
        column.process_bind_param(datetime(2024, 5, 1), dialect)


def test_plain_json_copies_and_drops_what_json_has_not() -> None:
    given = {1: (float("nan"), {"x": [float("inf"), 0.5, True, None, "a"]})}
    assert plain(given) == {"1": [None, {"x": [None, 0.5, True, None, "a"]}]}


def test_lists_over_many_trials_read_an_index_and_no_row(
    store: SqlStore, small_study: Fill
) -> None:
    small_study(store)
    plans: list[str] = []

    def explain(_conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append(" / ".join(row[3] for row in cursor.fetchall()))

    event.listen(store._reader, "before_cursor_execute", explain)
    store.counts("small")
    store.last_snapshot("small")
    store.trial("small", 1)
    store.trials("small")
    store.curve("small", 0)
    assert not [plan for plan in plans if plan.startswith("SCAN") or "TEMP B-TREE" in plan]
    assert sum("COVERING INDEX ix_trials" in plan for plan in plans) == 1


def test_a_list_of_studies_costs_the_same_statements_however_many(
    store: SqlStore, small_study: Fill
) -> None:
    small_study(store)
    statements: list[str] = []
    plans: list[str] = []

    def explain(_conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append(statement)
        if statement.startswith("SELECT"):
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in cursor.fetchall())

    event.listen(store._reader, "before_cursor_execute", explain)
    assert len(store.summaries()) == 1
    one = len(statements)
    for number in range(20):
        store.create_study(NewStudy(f"more-{number}", {}, "", (), {}, {}, {}))
    statements.clear()
    plans.clear()
    assert len(store.summaries()) == 21
    assert len(statements) == one
    # Of trials, an index is read, and the rows that it leads to: never the whole table.
    read = [plan for plan in plans if "trials" in plan]
    assert len(read) == 3
    assert all("INDEX" in plan or "PRIMARY KEY" in plan for plan in read)


def test_a_drivers_message_is_cut_to_one_line_without_the_password() -> None:
    place = parse_place("postgres://ann:s3cr3t@db/studies")
    cause = Exception("connection to ann:s3cr3t@db failed\nIs the server running?")
    error = storage_error(OperationalError("SELECT 1", {}, cause), place)
    shown = "postgresql+psycopg://ann:***@db/studies: connection to ann:***@db failed"
    assert str(error).startswith(f"{shown}; check that the server runs")
    assert "\n" not in str(error)


def test_sqlalchemy_is_loaded_when_it_is_used_and_alembic_not_for_a_new_database(
    sqlite_url: str,
) -> None:
    code = (
        "import sys, storage\n"
        "assert storage.DEFAULT_URL == 'sqlite:///autopeft.db'\n"
        "assert 'sqlalchemy' not in sys.modules\n"
        "from storage import open_store\n"
        f"open_store({sqlite_url!r}, create=True).close()\n"
        "assert 'alembic' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
