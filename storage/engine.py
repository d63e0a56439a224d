"""Engines: one that writes, one that can only read.

SQLite is hardened for many processes: it waits for locks, keeps a write-ahead log so that readers
neither wait nor hinder, enforces foreign keys, and takes the write lock when a transaction begins
rather than half-way (where it could only fail). Readers open the file with `mode=ro`.

PostgreSQL is told not to wait for ever: neither for a lock, nor for a server or client that went
away without a word, nor for a coordinator that was frozen within a transaction. Readers run in
read-only transactions, each of which sees one moment, as on SQLite.
"""

import logging
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from autopeft.errors import StorageError
from storage.filesystem import identity, network_file_system
from storage.place import Place

_log = logging.getLogger(__name__)

_SLOW = (
    "%s lies on %s, a network file system: SQLite keeps a rollback journal there, which is "
    "slower, and readers and writers wait for each other; a local disk or PostgreSQL serves better"
)

_NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""How libpq notices within a minute that a server is gone; a URL's own values go before these."""

_FROZEN_MS = 30_000
"""A transaction takes milliseconds; one idle for longer is a stopped process that holds locks."""

_RETRY_S = 0.01
"""Between two tries to change the journal mode."""


class Links:
    """Connections of engines to a server, so that one that went silent can be cut.

    A server that is frozen keeps its connections: its kernel answers for it, and whoever asks it
    something waits for ever.

    Args:
        engines: Of one database.
    """

    def __init__(self, engines: Iterable[Engine]) -> None:
        self._open: set[Any] = set()
        self._silent: StorageError | None = None
        for engine in engines:
            event.listen(engine, "do_connect", self._check)
            event.listen(engine, "connect", lambda link, _record: self._open.add(link))
            event.listen(engine, "close", lambda link, _record: self._open.discard(link))
            event.listen(engine, "invalidate", lambda link, *_: self._open.discard(link))

    def cut(self, error: StorageError) -> None:
        """End whatever waits for an answer, with a lost connection; from now on none is made.

        Else one that is lost as it is taken up would be replaced, and whoever takes it up would
        wait for the server all over again.

        Args:
            error: Raised where one is to be made.
        """
        self._silent = error
        for link in tuple(self._open):
            # One that is closed already has no socket.
            with suppress(Exception), socket.socket(fileno=os.dup(link.fileno())) as own:
                own.shutdown(socket.SHUT_RDWR)
            self._open.discard(link)

    def _check(self, *_: Any) -> None:
        """Called before a connection is made; returning nothing leaves that to others."""
        if self._silent is not None:
            raise self._silent


def writer(place: Place, *, create: bool = False, foreign_keys: bool = True) -> Engine:
    """An engine whose transactions may write.

    Args:
        place: The database.
        create: Whether a missing SQLite file is created.
        foreign_keys: Whether SQLite enforces foreign keys; migrations that rebuild a table must
            not, or dropping the old one would delete all that refers to it.
    """
    path = place.path
    if path is None:
        return _postgresql(place)
    network = network_file_system(path)
    journal = "delete" if network else "wal"
    if network and not create:
        _log.warning(_SLOW, path, network)

    def prepare(connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        _set_journal(connection, journal, place.busy_timeout_s)

    return _sqlite(
        path,
        place.busy_timeout_s,
        mode="rwc" if create else "rw",
        begin="BEGIN IMMEDIATE",
        prepare=prepare,
    )


def _set_journal(connection: sqlite3.Connection, wanted: str, patience_s: float) -> None:
    """Change the journal mode; SQLite does not wait by itself for others who use a new file."""
    deadline = time.monotonic() + patience_s
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        try:
            connection.execute(f"PRAGMA journal_mode = {wanted}")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def reader(place: Place) -> Engine:
    """An engine that cannot write, whatever it is told."""
    if place.path is None:
        return _postgresql(place, isolation_level="REPEATABLE READ").execution_options(
            postgresql_readonly=True
        )
    return _sqlite(place.path, place.busy_timeout_s, mode="ro", begin="BEGIN")


def _sqlite(
    path: Path,
    busy_timeout_s: float,
    *,
    mode: str,
    begin: str,
    prepare: Callable[[sqlite3.Connection], None] | None = None,
) -> Engine:
    query = {"mode": mode, "uri": "true"}
    url = URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)
    # `timeout` is SQLite's busy_timeout, set before the first statement.
    engine = create_engine(url, connect_args={"timeout": busy_timeout_s})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # sqlite3 begins no transaction; `_on_begin` does
        if prepare is not None:
            prepare(connection)
        record.info["file"] = identity(path)

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # SQLite would go on writing to a file that was deleted, and nobody would ever see it.
        if connection.info["file"] != identity(path):
            connection.invalidate()
            raise StorageError(
                f"{path}: the file was deleted, moved or replaced while it was in use",
                hint="put it back, then run the same command again",
            )
        connection.exec_driver_sql(begin)

    return engine


def _postgresql(place: Place, **options: Any) -> Engine:
    try:
        engine = create_engine(
            place.url,
            pool_pre_ping=True,
            connect_args={k: v for k, v in _NETWORK.items() if k not in place.url.query},
            **options,
        )
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{place}: PostgreSQL needs the package psycopg, which is not installed",
            hint="pip install 'autopeft[postgres]'",
        ) from error
    wait_ms = round(place.busy_timeout_s * 1000)
    settings = (
        f"SET lock_timeout = {max(1, wait_ms)}",  # 0 would be for ever
        f"SET idle_in_transaction_session_timeout = {_FROZEN_MS}",
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: ConnectionPoolEntry) -> None:
        for setting in settings:
            connection.execute(setting)
        connection.commit()

    return engine
