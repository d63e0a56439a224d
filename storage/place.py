"""Where a database is: a storage URL, parsed once and safe to print.

SQLite URLs are `sqlite:///relative.db` or `sqlite:////absolute.db`, with `?timeout=5` for the
seconds to wait for a lock; PostgreSQL ones are `postgresql://user:password@host/database`.
Passwords never appear in `str(place)`, which is what messages and logs show.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from autopeft.errors import StorageError

BUSY_TIMEOUT_S = 30.0
"""How long to wait for SQLite's lock: writes take milliseconds, a slow disk seconds."""

ALLOWED = "allowed: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE"
_SECRETS = ("password", "sslpassword")
_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")
_SQLITE = ("sqlite", "sqlite+pysqlite")


@dataclass(frozen=True)
class Place:
    """A database's place.

    Attributes:
        url: The URL as SQLAlchemy takes it, secrets included: for engines only.
        path: The file of a SQLite database, absolute; None on PostgreSQL.
        busy_timeout_s: Seconds to wait for SQLite's lock.
    """

    url: URL
    path: Path | None
    busy_timeout_s: float = BUSY_TIMEOUT_S

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return self.url.difference_update_query(_SECRETS).render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"Place({self})"

    def without_secrets(self, text: str) -> str:
        """`text` with this URL's passwords blotted out, should a driver have quoted them."""
        secrets = [self.url.password, *(self.url.query.get(key) for key in _SECRETS)]
        for secret in secrets:
            if secret:
                text = text.replace(str(secret), "***")
        return text


def parse_place(text: str) -> Place:
    """The place that a storage URL names.

    Raises:
        StorageError: It is no URL, or one of a database that autopeft does not use.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The cause is dropped: it may quote the URL with its password.
        raise _unusable(text) from None
    if url.drivername in _SQLITE:
        return _sqlite(url, text)
    if url.drivername in _POSTGRESQL:
        return _postgresql(url, text)
    raise _unusable(text)


def _sqlite(url: URL, text: str) -> Place:
    if url.host:
        raise StorageError(
            f"storage: got {_blotted(text)}; allowed: sqlite:///{url.host}",
            hint="write three slashes before a relative path, four before an absolute one",
        )
    if url.database in (None, "", ":memory:"):
        raise StorageError(
            f"storage: got {text}; a study must outlive its process",
            hint="name a file: sqlite:///autopeft.db",
        )
    unknown = sorted(set(url.query) - {"timeout"})
    if unknown:
        raise StorageError(f"storage: got {', '.join(unknown)} in {text}; allowed: timeout")
    return Place(url, Path(str(url.database)).absolute(), _timeout_s(url, text))


def _timeout_s(url: URL, text: str) -> float:
    given = url.query.get("timeout", str(BUSY_TIMEOUT_S))
    try:
        seconds = float(str(given))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise StorageError(f"storage: got timeout={given} in {text}; allowed: seconds, 0 or more")
    return seconds


def _postgresql(url: URL, text: str) -> Place:
    if url.host and "@" in url.host:
        # SQLAlchemy ends the password at the first @ and would show the rest as the host.
        raise StorageError(
            f"storage: got {_blotted(text)} with an @ in the user or the password",
            hint="write that @ as %40",
        )
    if not url.database:
        raise StorageError(f"storage: got {_blotted(text)} without a database; {ALLOWED}")
    return Place(url.set(drivername="postgresql+psycopg"), None)


def _unusable(text: str) -> StorageError:
    if text and "://" not in text:
        return StorageError(f"storage: got {text}; {ALLOWED}", hint=f"try sqlite:///{text}")
    return StorageError(f"storage: got {_blotted(text) or 'nothing'}; {ALLOWED}")


def _blotted(text: str) -> str:
    """A URL that did not parse, without what may be a password."""
    text = re.sub(r"//[^/?]*:.*@", "//***@", text)
    return re.sub(rf"({'|'.join(_SECRETS)})=[^&]*", r"\1=***", text)
