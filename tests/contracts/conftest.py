"""A store on every database of `database_url`, on which the Store's contract is proved."""

from collections.abc import Iterator

import pytest

from storage import SqlStore, open_store


@pytest.fixture
def store(database_url: str) -> Iterator[SqlStore]:
    """A store without a study."""
    with open_store(database_url, create=True) as opened:
        yield opened
