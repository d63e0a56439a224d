"""The lease of a coordinator that prepares, and what becomes of one that was replaced."""

import time
from collections.abc import Iterator

import pytest

import storage
from autopeft import tuner
from autopeft.api.leasing import leased, renewed
from autopeft.errors import StudyHeldError, StudyTakenOverError
from autopeft.study.records import Holder, NewStudy, ObjectiveFrame
from storage import SqlStore

NAME, LEASE_S = "toy", 1.5
FRAME = (ObjectiveFrame("accuracy", "max", "linear", 0.2, 1.0),)
ELSEWHERE = Holder("another-host", 1, "space:1")


@pytest.fixture
def store(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlStore]:
    """One study, and leases that run out soon."""
    monkeypatch.setattr(tuner, "BUSY_S", LEASE_S)
    with storage.open_store(sqlite_url, create=True) as opened:
        opened.create_study(NewStudy(NAME, {}, "space", FRAME, {}, {}, {}))
        yield opened


def test_a_preparation_longer_than_the_lease_keeps_it(store: SqlStore) -> None:
    with leased(store, NAME) as token:
        with renewed(store, NAME, token):
            time.sleep(1.3 * LEASE_S)
            assert store.holder(NAME) is not None
            with pytest.raises(StudyHeldError):
                store.claim(NAME, ELSEWHERE, LEASE_S)
        store.renew(NAME, token, LEASE_S)
    assert store.holder(NAME) is None


def test_nothing_renews_once_the_preparation_is_over(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(SqlStore, "renew", lambda *given: asked.append(given[-1]))
    with renewed(store, NAME, 1):
        time.sleep(0.5)
    before = len(asked)
    assert set(asked) == {LEASE_S}
    time.sleep(0.3)
    assert len(asked) == before


def _replaced(store: SqlStore) -> None:
    with leased(store, NAME) as token, renewed(store, NAME, token):
        store.release(NAME, token)
        store.claim(NAME, ELSEWHERE, 60.0)
        time.sleep(0.3)
        store.requeue_trials(NAME, token)


def test_one_that_was_replaced_says_so_and_ends_quietly(store: SqlStore) -> None:
    with pytest.raises(StudyTakenOverError, match="another coordinator has taken over") as raised:
        _replaced(store)
    assert raised.value.exit_code == 0
    assert store.holder(NAME) == ELSEWHERE
