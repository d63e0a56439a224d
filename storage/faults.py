"""From what a driver raises to one line that a user can act on.

Every error of the database that leaves this package is a `StorageError`: which database, what is
wrong with it, what to do. A fault in autopeft itself (a wrong type, say) is none and passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Error as SqliteError

from sqlalchemy.exc import DBAPIError
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
    detail = place.without_secrets((str(cause).strip() or type(cause).__name__).splitlines()[0])
    if isinstance(cause, SqliteError):
        known = _SQLITE_FAULTS.get(_primary_code(cause))
        if known:
            what, hint = known
            what = what.format(timeout=place.busy_timeout_s, detail=detail)
            return StorageError(f"{place}: {what}", hint=hint)
    return StorageError(f"{place}: {detail}")


def _primary_code(error: SqliteError) -> str:
    """`SQLITE_BUSY` for `SQLITE_BUSY_SNAPSHOT`; "" where the driver names none."""
    name: str = getattr(error, "sqlite_errorname", "")
    return "_".join(name.split("_")[:2])
