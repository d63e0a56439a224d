"""A database that fails for a while: nothing is lost or counts twice, and one line at last."""

import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import OperationalError as SqliteOperationalError
from typing import Any

import psycopg
import pytest
from postgres_server import PASSWORD, PostgresServer
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from autopeft.configuration import Configuration, Group
from autopeft.errors import StorageError
from autopeft.study import patience
from autopeft.study.progress import Stopper
from autopeft.study.records import (
    Measurement,
    NewStudy,
    NewTrial,
    Origin,
    StudyState,
    TrialState,
    TrialUpdate,
)
from storage import SqlStore, open_store
from storage.faults import may_pass
from storage.lease import this_process
from storage.patience import AGAIN_S

TRIAL = NewTrial(
    Configuration.of(
        [Group.of("lora", [0], ["query"], rank=4)],
        training={"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06},
    ),
    Origin.SEARCHER,
    trainable_params=768,
    head_params=770,
    pack=0,
)


def waiting(url: str, patience_s: float, stopper: Stopper | None = None) -> SqlStore:
    """A store as a search opens it."""
    mark = "&" if "?" in url else "?"
    full = f"{url}{mark}patience={patience_s}"
    return open_store(full, create=True, stopper=stopper or Stopper())


def a_search(store: SqlStore) -> None:
    """Every kind of write that a search does, in its order."""
    store.create_study(NewStudy("s", {"study": {"seed": 1}}, "f", (), {}, {}, {}))
    token = store.claim("s", this_process(), 60.0)
    store.request_stop("s", False)
    store.update_study("s", token, state=StudyState.RUNNING, spent={"wall_seconds": 1.0})
    first, second = (trial.number for trial in store.add_trials("s", token, [TRIAL, TRIAL]))
    store.start_trials("s", token, [first, second])
    points = (Measurement(10, "accuracy", "validation", 0.5, 1.0),)
    store.record(
        "s", token, first, measurements=points, objectives={"accuracy": 0.5}, rung=1.0,
        optimizer_steps=10,
    )  # fmt: skip
    store.finish_trial("s", token, first, TrialState.COMPLETED)
    store.renew("s", token, 60.0)
    update = TrialUpdate(
        second,
        measurements=points,
        objectives={"accuracy": 0.75},
        rung=1.0,
        optimizer_steps=10,
        state=TrialState.COMPLETED,
    )
    store.update_trials("s", token, [update])
    store.add_snapshot("s", token, trials=2, front=[1], hypervolume=0.5)
    store.update_study("s", token, spent={"wall_seconds": 1.0}, state=StudyState.FINISHED)
    store.release("s", token)


def check_the_search(store: SqlStore) -> None:
    """Everything happened once."""
    assert store.study("s").spent["wall_seconds"] == 2.0
    assert store.study("s").state is StudyState.FINISHED
    trials = store.trials("s")
    assert [(t.number, t.state, t.attempts) for t in trials] == [
        (0, TrialState.COMPLETED, 1),
        (1, TrialState.COMPLETED, 1),
    ]
    assert [dict(t.objectives) for t in trials] == [{"accuracy": 0.5}, {"accuracy": 0.75}]
    assert [len(store.curve("s", t.number)) for t in trials] == [1, 1]
    assert [s.index for s in store.snapshots("s")] == [0]
    assert store.holder("s") is None


class Fault:
    """Makes one of an engine's statements fail: the one of a number, before or after it is run."""

    def __init__(self, engine: Engine, fail: Callable[[Any], None], *, when: str) -> None:
        self.at, self.count, self._fail = -1, 0, fail
        event.listen(engine, f"{when}_cursor_execute", self)

    def __call__(self, connection: Any, *_: Any) -> None:
        self.count += 1
        if self.count - 1 == self.at:
            self._fail(connection)


def _locked(_connection: Any) -> None:
    error = SqliteOperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    raise OperationalError("UPDATE", {}, error)


def _cut(connection: Any) -> None:
    """The server drops the connection."""
    raw = connection.connection.dbapi_connection
    if isinstance(raw, psycopg.Connection):
        raw.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again almost at once."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.005)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_locked_file_at_any_statement_changes_nothing(sqlite_url: str, when: str) -> None:
    with waiting(sqlite_url, 30.0) as store:
        assert store._writer is not None
        fault = Fault(store._writer, _locked, when=when)
        a_search(store)
        check_the_search(store)
        for at in range(fault.count):
            store.delete_study("s")
            fault.at, fault.count = at, 0
            a_search(store)
            fault.at = -1
            check_the_search(store)
    assert fault.count > 40


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_connection_cut_at_any_statement_changes_nothing(
    postgresql_url: str, stride: int
) -> None:
    with waiting(postgresql_url, 30.0) as store:
        assert store._writer is not None
        fault = Fault(store._writer, _cut, when="before")
        a_search(store)
        check_the_search(store)
        for at in range(0, fault.count, stride):
            store.delete_study("s")
            fault.at, fault.count = at, 0
            a_search(store)
            fault.at = -1
            check_the_search(store)
    assert fault.count > 40


@pytest.mark.parametrize("kept", [True, False])
def test_a_connection_lost_while_committing_counts_once(
    postgresql_url: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has committed, or has not: the client sees the same."""
    lost: list[int] = []
    with waiting(postgresql_url, 30.0) as store:
        assert store._writer is not None
        dialect = store._writer.dialect
        commit, every = dialect.do_commit, [0]

        def lossy(connection: Any) -> None:
            every[0] += 1
            if kept:
                commit(connection)
            if every[0] % 2:
                lost.append(every[0])
                connection.dbapi_connection.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            if not kept:
                commit(connection)

        monkeypatch.setattr(dialect, "do_commit", lossy)
        a_search(store)
        check_the_search(store)
    assert len(lost) >= 6


def test_patience_ends_with_one_line_and_comes_back(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with waiting(f"{sqlite_url}?timeout=0", 3.0) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.WARNING, "storage"):
            began = time.monotonic()
            with pytest.raises(StorageError, match="another process kept it locked") as raised:
                store.request_stop("s")
            assert 3.0 <= time.monotonic() - began < 30
            # What a search does on its way out does not wait all over again.
            began = time.monotonic()
            with pytest.raises(StorageError):
                store.request_stop("s")
            assert time.monotonic() - began < 2.5
        other.execute("COMMIT")
        other.close()
        store.request_stop("s")
        assert store.study("s").stop_requested
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)
    assert [r.message.count("waiting for it") for r in caplog.records] == [1]


def test_a_stop_ends_the_patience(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "GRACE_S", 0.2)
    stopper = Stopper()
    with waiting(f"{sqlite_url}?timeout=0", 300.0, stopper) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.5, stopper.request, ["SIGTERM"]).start()
        began = time.monotonic()
        with pytest.raises(StorageError):
            store.request_stop("s")
        assert 0.5 <= time.monotonic() - began < 20
        other.close()


@contextmanager
def stopped_by_signal(stopper: Stopper, after_s: float) -> Iterator[list[float]]:
    """A signal whose handler asks for a stop, as a command's does; when it ran."""
    ran: list[float] = []

    def handle(*_: object) -> None:
        ran.append(time.monotonic())
        stopper.request("SIGALRM")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield ran
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def check_it_ends(store: SqlStore, stopper: Stopper, *, within_s: float = 15.0) -> None:
    """With the waiting that a URL asks for by itself: a signal is heard, and soon all is over."""
    began = time.monotonic()
    with stopped_by_signal(stopper, 0.3) as ran, pytest.raises(StorageError):
        store.request_stop("s")
    ended = time.monotonic()
    assert ran
    assert ran[0] - began < 10.0, "the signal waited for the lock"
    assert ended - ran[0] < within_s
    for _ in range(4):  # what a search does on its way out
        with pytest.raises(StorageError):
            store.request_stop("s")
    assert time.monotonic() - ended < 3.5


def test_a_signal_is_heard_while_a_file_is_locked(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "GRACE_S", 1.5)
    stopper = Stopper()
    with waiting(sqlite_url, 300.0, stopper) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        check_it_ends(store, stopper)
        other.execute("COMMIT")
        other.close()
        time.sleep(AGAIN_S)
        store.request_stop("s")


def test_a_signal_is_heard_while_a_table_is_locked(
    postgres_server: PostgresServer, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "GRACE_S", 1.5)
    stopper = Stopper()
    with waiting(postgresql_url, 300.0, stopper) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        with psycopg.connect(postgresql_url) as other:
            other.execute("LOCK TABLE studies")
            check_it_ends(store, stopper)
            other.rollback()
        time.sleep(AGAIN_S)
        store.request_stop("s")


def test_a_signal_ends_the_wait_for_a_server_that_is_frozen(
    postgres_server: PostgresServer, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel answers for it, so that nothing else tells that it is gone."""
    monkeypatch.setattr(patience, "GRACE_S", 1.5)
    stopper = Stopper()
    with waiting(postgresql_url, 300.0, stopper) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        with postgres_server.frozen():
            check_it_ends(store, stopper, within_s=8.0)  # to connect once more would take ten


@pytest.mark.parametrize("read_only", [True, False])
def test_whoever_only_looks_does_not_wait(
    sqlite_url: str, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(sqlite_url, create=True).close()
    with open_store(sqlite_url, read_only=read_only) as store:
        engine = store._reader
        fault = Fault(engine, _locked, when="before")
        fault.at = 0
        with pytest.raises(StorageError, match="locked"):
            store.studies()


def test_what_will_not_pass_is_not_waited_for(sqlite_url: str, tmp_path: Path) -> None:
    with waiting(sqlite_url, 300.0) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        path = tmp_path / "studies.db"
        path.rename(tmp_path / "away.db")
        with pytest.raises(StorageError, match="deleted, moved or replaced") as raised:
            store.request_stop("s")
        assert not may_pass(raised.value)


# -- a server -------------------------------------------------------------------------------------


@contextmanager
def restarted(server: PostgresServer, *, crash: bool) -> Iterator[None]:
    """The server goes away and comes back while the block runs."""
    thread = threading.Thread(target=server.restart, kwargs={"crash": crash, "after_s": 0.5})
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("crash", [False, True])
def test_a_server_restarts_while_a_search_writes(
    postgres_server: PostgresServer,
    postgresql_url: str,
    crash: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    n = 0
    with waiting(postgresql_url, 60.0) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        token = store.claim("s", this_process(), 600.0)

        def write_one() -> None:
            (trial,) = store.add_trials("s", token, [TRIAL])
            assert trial.number == n
            store.update_study("s", token, spent={"wall_seconds": 1.0})

        for _ in range(3):
            write_one()
            n += 1
        with caplog.at_level(logging.WARNING, "storage"), restarted(postgres_server, crash=crash):
            until = time.monotonic() + 60
            while "works again" not in caplog.text and time.monotonic() < until:
                write_one()
                n += 1
        assert "waiting for it" in caplog.text
        assert "works again" in caplog.text
        assert PASSWORD not in caplog.text
        assert [trial.number for trial in store.trials("s")] == list(range(n))
        assert store.study("s").spent["wall_seconds"] == n
        assert n > 3


def test_a_server_that_is_away_is_one_line_without_the_password(
    postgres_server: PostgresServer, postgresql_url: str
) -> None:
    open_store(postgresql_url, create=True).close()
    postgres_server.stop()
    try:
        for options in ({}, {"read_only": True}, {"create": True}):
            with pytest.raises(StorageError, match="check that the server runs") as raised:
                open_store(postgresql_url, **options)
            assert "\n" not in str(raised.value)
            assert PASSWORD not in str(raised.value)
            assert raised.value.exit_code == 3
    finally:
        postgres_server.start()
    open_store(postgresql_url).close()


@pytest.mark.parametrize(
    ("user", "password", "database", "says"),
    [
        ("ann", "wrong", "", "password authentication failed"),
        ("ann", PASSWORD, "nowhere", "does not exist"),
        ("postgres", "", "", "none"),
    ],
)
def test_a_server_that_refuses_is_one_line(
    postgres_server: PostgresServer, user: str, password: str, database: str, says: str
) -> None:
    name = database or postgres_server.new_database().rpartition("/")[2]
    url = postgres_server.url(name, user, password)
    if says == "none":  # the superuser needs no password: to see that the others were refused
        open_store(url, create=True).close()
        return
    with pytest.raises(StorageError, match=says) as raised:
        open_store(url, create=True)
    assert "\n" not in str(raised.value)
    assert password not in str(raised.value)
