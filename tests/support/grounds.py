"""A place on each database, and what only the database itself tells."""

import sqlite3
from typing import TypeAlias

from postgres_server import PostgresServer
from stand_in_place import Place


class Sqlite:
    """A place on a file, and what only the file tells."""

    name = "SQLite"

    def __init__(self, place: Place) -> None:
        self.place, self._path = place, place.folder / "autopeft.db"

    def writes(self) -> bool:
        """Whether somebody is within a transaction that writes."""
        if not self._path.exists():
            return False
        connection = sqlite3.connect(self._path, timeout=0.0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return True
        finally:
            connection.close()
        return False

    def check(self) -> None:
        """It is sound."""
        self.place.check_file()


class Postgres:
    """A place on a server, and what only the server tells."""

    name = "PostgreSQL"

    def __init__(self, place: Place, server: PostgresServer) -> None:
        self.place, self._server = place, server
        self._database = place.url.rpartition("/")[2]

    def writes(self) -> bool:
        """Whether somebody is within a transaction that writes."""
        query = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL"
        )
        return bool(self._ask(query))

    def check(self) -> None:
        """Indexes hold what tables hold, and nobody has left a transaction behind."""
        assert not self.writes()
        checked = self._ask(
            "CREATE EXTENSION IF NOT EXISTS amcheck",
            "SELECT bt_index_check(index => c.oid, heapallindexed => true) FROM pg_class c "
            "JOIN pg_am a ON a.oid = c.relam AND a.amname = 'btree' "
            "JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'",
        )
        assert len(checked) > 5

    def _ask(self, *statements: str) -> list[tuple[object, ...]]:
        return self._server.execute(*statements, database=self._database)


Ground: TypeAlias = Sqlite | Postgres
