"""The databases on which the Store's contract is proved.

One joins by a fixture `NAME_url`, which gives the URL of an empty database, and by its name in
`DATABASES`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import SqlStore, open_store

DATABASES = ("sqlite", "postgresql")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(database_url: str) -> Iterator[SqlStore]:
    """A store without a study."""
    with open_store(database_url, create=True) as opened:
        yield opened
