"""From what a driver raises to one line that a user can act on.

Every error of the database that leaves this package is a `StorageError`: which database, what is
wrong with it, what to do. A fault in autopeft itself (a wrong type, say) is none and passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Error as SqliteError

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from autopeft.errors import StorageError
from storage.place import Place

_AGAIN = "run the same command again; what was stored is safe"

_SQLITE_FAULTS = {
    "SQLITE_BUSY": (
        "another process kept it locked for longer than {timeout:g} s",
        f"see what else writes to it, then {_AGAIN}",
    ),
    "SQLITE_LOCKED": ("it is locked", f"see what else writes to it, then {_AGAIN}"),
    "SQLITE_NOTADB": (
        "it is not a SQLite database",
        "name another file, or move this one away",
    ),
    "SQLITE_CORRUPT": (
        "it is damaged",
        "restore a copy, or save what can be read with `sqlite3 FILE .recover`",
    ),
    "SQLITE_FULL": ("the disk is full", f"free some space, then {_AGAIN}"),
    "SQLITE_IOERR": (
        "the disk failed or is full ({detail})",
        f"check the disk and its space, then {_AGAIN}",
    ),
    "SQLITE_READONLY": (
        "it cannot be written ({detail})",
        "check the permissions of the file and of its folder: SQLite must write there even to "
        "read, unless a search is running",
    ),
    "SQLITE_CANTOPEN": (
        "it cannot be opened ({detail})",
        "check that the file is there, and the permissions of the file and of its folder",
    ),
    "SQLITE_PERM": ("permission denied", "check the permissions of the file and of its folder"),
}
"""What is wrong and what to do, by SQLite's primary result code."""

_POSTGRESQL_FAULTS = {
    "25006": ("it can only be read by this user", "give the URL of a user who may write"),
    "3D000": ("there is no such database", "make it with `createdb`"),
    "42501": ("permission denied ({detail})", "grant it, or give the URL of another user"),
    "53100": ("the server's disk is full", f"free some space, then {_AGAIN}"),
    "53300": ("the server has no connection left", f"close some, then {_AGAIN}"),
    "55P03": (
        "another process kept it locked for longer than {timeout:g} s",
        f"see what else writes to it, then {_AGAIN}",
    ),
}
"""Likewise by PostgreSQL's SQLSTATE."""

_UNREACHABLE = (
    "check that the server runs, and the host, port, user, password and database of the URL"
)

_PASSING_SQLITE = frozenset(
    ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN")
)
# Lost connections, too few resources, a server that starts or stops, deadlocks, locks.
_PASSING_POSTGRESQL = ("08", "53", "57P", "58", "25P03", "40", "55P03")


@contextmanager
def storage_errors(place: Place) -> Iterator[None]:
    """Turns the database's errors within the block into `StorageError`s that name `place`."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        raise storage_error(error, place) from error


def storage_error(error: DBAPIError | PoolTimeoutError, place: Place) -> StorageError:
    """The one line for what the database raised."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    detail = place.without_secrets(_detail(cause))
    known = _known(cause)
    if known:
        what, hint = known
        what = what.format(timeout=place.busy_timeout_s, detail=detail)
        return StorageError(f"{place}: {what}", hint=hint)
    hint = _UNREACHABLE if place.path is None and _is_unreachable(error) else ""
    return StorageError(f"{place}: {detail}", hint=hint)


def may_pass(error: StorageError) -> bool:
    """Whether the same call may succeed later: a lock, a full disk, a server that restarts."""
    cause = error.__cause__
    if isinstance(cause, PoolTimeoutError):
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if isinstance(cause.orig, SqliteError):
        return _primary_code(cause.orig) in _PASSING_SQLITE
    return _is_unreachable(cause) or _state(cause.orig).startswith(_PASSING_POSTGRESQL)


def _known(cause: BaseException | None) -> tuple[str, str] | None:
    if isinstance(cause, SqliteError):
        return _SQLITE_FAULTS.get(_primary_code(cause))
    return _POSTGRESQL_FAULTS.get(_state(cause))


def _detail(cause: BaseException | None) -> str:
    """A driver's first line; where psycopg tried several addresses, the first that failed."""
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return next((line for line in lines if not line.startswith("Multiple connection")), lines[0])


def _is_unreachable(error: DBAPIError | PoolTimeoutError) -> bool:
    """A connection that could not be made, or was lost: without an SQLSTATE of the server's."""
    if not isinstance(error, DBAPIError):
        return False
    lost = error.connection_invalidated or isinstance(error, OperationalError)
    return lost and not _state(error.orig)


def _state(error: BaseException | None) -> str:
    """PostgreSQL's SQLSTATE; "" where there is none."""
    return str(getattr(error, "sqlstate", None) or "")


def _primary_code(error: SqliteError) -> str:
    """`SQLITE_BUSY` for `SQLITE_BUSY_SNAPSHOT`; "" where the driver names none."""
    name: str = getattr(error, "sqlite_errorname", "")
    return "_".join(name.split("_")[:2])
