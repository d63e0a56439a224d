"""Where a study for Optuna is written: a database's URL or a journal file, opened and checked.

Optuna's tables have names that autopeft's have too (`studies`, `trials`), so nothing but a new
database or one of Optuna's own is written to. Passwords in URLs are never shown.
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from autopeft.errors import AutopeftError, ExportError, Fault, StorageError
from autopeft.passwords import blotted

ALLOWED = "a URL such as sqlite:///optuna.db, or a journal file such as optuna.log"
_SECRET_KEYS = "password|sslpassword|passwd"


@contextmanager
def opened(url: str) -> Iterator[BaseStorage]:
    """Optuna's storage at a place; closed afterwards.

    Args:
        url: A database's URL, or the path of a journal file.

    Raises:
        ExportError: It is neither, or holds what is not Optuna's.
        StorageError: It cannot be reached or written.
    """
    storage = _storage(url)
    try:
        yield storage
    except AutopeftError:  # a StorageError is an OSError too, and says what it should
        raise
    except (OptunaError, OSError) as error:
        raise _unusable(url, error) from None
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def _storage(url: str) -> BaseStorage:
    is_url = "://" in url
    if is_url and url.startswith("sqlite"):
        _check_sqlite(url)
    elif not is_url:
        _check_journal(Path(url))
    try:
        return RDBStorage(url) if is_url else JournalStorage(JournalFileBackend(url))
    except Exception as error:  # drivers raise what they like; a missing one is an ImportError
        raise _unusable(url, error) from None  # the cause may quote the URL with its password


def _unusable(url: str, error: Exception) -> StorageError:
    reason = _without_secrets(str(error) or type(error).__name__, url).splitlines()[0]
    return StorageError(f"{blotted(url)}: {reason}", hint=f"give {ALLOWED}")


def _without_secrets(text: str, url: str) -> str:
    secrets = re.findall(r"//[^:/@]*:(.*)@", url) + re.findall(rf"(?:{_SECRET_KEYS})=([^&]*)", url)
    for secret in secrets:
        for spelling in {secret, unquote(secret)}:
            text = text.replace(spelling, "***") if spelling else text
    return text


def _check_journal(path: Path) -> None:
    """Refuse what looks like a database, and a file that is no journal."""
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        hint = f"write sqlite:///{path} for a database"
        raise ExportError(Fault("-o", "", str(path), ALLOWED, hint))
    _make_folder(path)
    if path.exists() and path.stat().st_size and not _is_journal(path):
        raise _foreign(str(path), "a file that is no journal of Optuna's")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        given = f"{path} ({error.strerror})"
        raise ExportError(Fault("-o", "", given, "a place that can be written")) from error


def _is_journal(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            entry = json.loads(file.readline())
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry


def _check_sqlite(url: str) -> None:
    """Refuse what would not last, and a file that another program keeps its data in."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", url)
    if match is None or match[1] == ":memory:":
        raise ExportError(Fault("-o", "", blotted(url), ALLOWED, "name a file"))
    path = Path(match[1])
    _make_folder(path)
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in rows}
    except sqlite3.DatabaseError as error:
        raise _foreign(blotted(url), str(error)) from error
    if tables and "version_info" not in tables:  # the table that Optuna alone has
        raise _foreign(blotted(url), "a database of another program")


def _foreign(given: str, what: str) -> ExportError:
    return ExportError(
        Fault(
            "-o", "", f"{given} ({what})", "a new place, or one of Optuna's", "name another file"
        )
    )
