"""Settings for all tests: no network, and nothing of the user's own environment."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer, ServerUnavailableError, server_folder

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DATABASES = ("sqlite", "postgresql")
"""The databases on which everything about storage is proved: a fixture `NAME_url` for each."""


def pytest_collection_finish() -> None:
    """Spare what was imported and collected from the collector: it is a million objects.

    A full collection takes half a second with them, and there are many: Streamlit asks for one
    after every page, the memory probe before every measurement.
    """
    import hypothesis  # noqa: F401 - asks the collector who refers to what while it is imported

    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOPEFT_STORAGE", "AUTOPEFT_OUTPUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this session; tests that need one are skipped where none can run."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    try:
        folder, user = server_folder()
        server = PostgresServer(folder, user)
    except ServerUnavailableError as error:
        pytest.skip(str(error))
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database on a real PostgreSQL server."""
    return postgres_server.new_database()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite database that is not made yet."""
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, on each of `DATABASES`."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found
