"""Storage: where studies are kept.

SQLAlchemy models, the migrations that make and change their tables, and `SqlStore`, the Store of
`autopeft.study.store` over them. Rows never leave this package; frozen records do. The names below
are loaded on first use, so that `--help` need not wait for SQLAlchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.copying import copy
    from storage.schema import upgrade
    from storage.store import SqlStore, open_store

DEFAULT_URL = "sqlite:///autopeft.db"
"""The database where none is named: a file in the working directory."""

_HOME = {
    "SqlStore": "storage.store",
    "copy": "storage.copying",
    "open_store": "storage.store",
    "upgrade": "storage.schema",
}

__all__ = ["DEFAULT_URL", "SqlStore", "copy", "open_store", "upgrade"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
