"""Where a database is: a storage URL, parsed once and safe to print.

SQLite URLs are `sqlite:///relative.db` or `sqlite:////absolute.db`; PostgreSQL ones are
`postgresql://user:password@host/database`. On both, `?timeout=5` are the seconds to wait for a
lock, and `patience=60` those that a running search waits for a place that it writes to and that
cannot be used: this database, or the folder of its artifacts.
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
from autopeft.passwords import blotted

BUSY_TIMEOUT_S = 30.0
"""How long to wait for a lock: writes take milliseconds, a slow disk seconds."""

PATIENCE_S = 300.0
"""How long a search waits for its database: a server's restart, a disk being cleared. Longer than
the lease (`autopeft.tuner.LEASE_S`): while the database is away nobody else can take the study
either. Where only this machine has lost it, another one may; what this one writes then comes too
late, is refused by the fencing number, and is kept apart."""

ALLOWED = "allowed: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE"
_SECRETS = ("password", "sslpassword")
_SECONDS = {"timeout": BUSY_TIMEOUT_S, "patience": PATIENCE_S}
_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")
_SQLITE = ("sqlite", "sqlite+pysqlite")


@dataclass(frozen=True)
class Place:
    """A database's place.

    Attributes:
        url: The URL as SQLAlchemy takes it, secrets included: for engines only.
        path: The file of a SQLite database, absolute; None on PostgreSQL.
        busy_timeout_s: Seconds to wait for a lock.
        patience_s: Seconds that a search waits for a database that cannot be used.
    """

    url: URL
    path: Path | None
    busy_timeout_s: float = BUSY_TIMEOUT_S
    patience_s: float = PATIENCE_S

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
            f"storage: got {_blotted(text)}; a study must outlive its process",
            hint="name a file: sqlite:///autopeft.db",
        )
    unknown = sorted(set(url.query) - set(_SECONDS))
    if unknown:
        given = f"{', '.join(unknown)} in {_blotted(text)}"
        raise StorageError(f"storage: got {given}; allowed: {', '.join(_SECONDS)}")
    return Place(url, Path(str(url.database)).absolute(), *_seconds(url, text))


def _seconds(url: URL, text: str) -> list[float]:
    """The seconds that the URL sets, in the order of `_SECONDS`."""
    return [
        _parsed(name, url.query.get(name, default), text) for name, default in _SECONDS.items()
    ]


def _parsed(name: str, given: object, text: str) -> float:
    try:
        seconds = float(str(given))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        shown = _blotted(text)
        raise StorageError(f"storage: got {name}={given} in {shown}; allowed: seconds, 0 or more")
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
    plain = url.set(drivername="postgresql+psycopg").difference_update_query(_SECONDS)
    return Place(plain, None, *_seconds(url, text))


def _unusable(text: str) -> StorageError:
    if text and "://" not in text and "@" not in text:
        return StorageError(f"storage: got {text}; {ALLOWED}", hint=f"try sqlite:///{text}")
    return StorageError(f"storage: got {_blotted(text) or 'nothing'}; {ALLOWED}")


def _blotted(text: str) -> str:
    """What was given as a URL, without what may be a password."""
    if "://" not in text:
        return re.sub(r"^.*@", "***@", text)
    return blotted(text.replace(" ", "%20"))
