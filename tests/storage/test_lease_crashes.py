"""A coordinator that dies after any statement: its study is held for a while, and then taken over.

Death is played by an exception that nothing handles and a connection that is dropped: to the
database, a killed process is no more than that. The holder lies on another host, so that nobody
can see it dead, and its lease must run out.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event, select

from autopeft.errors import StudyHeldError
from autopeft.study.records import Holder, NewStudy, StudyState
from storage import SqlStore, open_store
from storage.columns import DatabaseNow
from storage.models import StudyRow

DOOMED = Holder("another-host", 4711, "space:1")
HEIR = Holder("a-third-host", 4712, "space:2")
LEASE_S, TICK_S = 0.4, 0.3


class DeathError(BaseException):
    """What ends the process."""


class Death:
    """Kills at one of the writer's steps: after a statement, or before or after a commit."""

    def __init__(self, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
        assert store._writer is not None
        self.at, self.steps = -1, 0
        event.listen(store._writer, "after_cursor_execute", self._after_statement)
        dialect = store._writer.dialect
        commit = dialect.do_commit

        def do_commit(connection: Any) -> None:
            self._step(connection)
            commit(connection)
            self._step(connection)

        monkeypatch.setattr(dialect, "do_commit", do_commit)

    def _after_statement(self, connection: Any, *_: Any) -> None:
        self._step(connection.connection.dbapi_connection)

    def _step(self, connection: Any) -> None:
        self.steps += 1
        if self.steps - 1 == self.at:
            connection.rollback()  # as the database does of itself for who has gone
            raise DeathError


def first_sitting(store: SqlStore) -> None:
    """What a coordinator does to begin, to go on and to end."""
    token = store.claim("s", DOOMED, LEASE_S)
    store.request_stop("s", False)
    store.update_study("s", token, state=StudyState.RUNNING)
    store.renew("s", token, LEASE_S)
    store.update_study("s", token, state=StudyState.FINISHED)
    store.release("s", token)


def lease_of(store: SqlStore) -> tuple[str, int, bool, float]:
    """State, token, whether somebody has or had the lease, and its seconds by the database."""
    with store._reading() as session:
        until = StudyRow.lease_until_s
        query = select(StudyRow.state, StudyRow.lease_token, until, until - DatabaseNow())
        state, token, ends, left_s = session.execute(query).one()
        return state, token, ends is not None, left_s or 0.0


def test_whoever_dies_at_any_statement_is_followed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(database_url, create=True) as store:
        death = Death(store, monkeypatch)
        study = NewStudy("s", {}, "f", (), {}, {}, {})
        store.create_study(study)
        death.steps = 0
        first_sitting(store)
        total = death.steps
        assert total >= 25
        for at in range(total):
            store.delete_study("s")
            store.create_study(study)
            death.at, death.steps = at, 0
            with pytest.raises(DeathError):
                first_sitting(store)
            died, death.at = time.monotonic(), -1
            state, token, held, left_s = lease_of(store)
            assert left_s <= LEASE_S
            assert held or state != StudyState.RUNNING, f"running without a lease: step {at}"
            heir = follow(store, held=held)
            assert time.monotonic() - died < LEASE_S + TICK_S + 5.0  # 5 s for a slow machine
            assert heir == token + 1
            with pytest.raises(StudyHeldError):
                store.renew("s", token, 60.0)
            store.release("s", heir)


def follow(store: SqlStore, *, held: bool) -> int:
    """The token of the next holder, who tries again every tick."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(StudyHeldError):
            return store.claim("s", HEIR, 60.0)
        assert held, "refused, though nobody holds it"
        time.sleep(TICK_S)
    raise AssertionError("the lease did not run out")


@pytest.mark.parametrize("call", ["claim", "renew"])
def test_a_lost_reply_does_not_take_the_lease_twice(
    database_url: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who died after its commit holds the lease like anybody else, until it runs out."""
    with open_store(database_url, create=True) as store:
        store.create_study(NewStudy("s", {}, "f", (), {}, {}, {}))
        calls: dict[str, Callable[[], object]] = {
            "claim": lambda: store.claim("s", DOOMED, 60.0),
            "renew": lambda: store.renew("s", 1, 60.0),
        }
        if call == "renew":
            store.claim("s", DOOMED, 0.1)
        death = Death(store, monkeypatch)
        calls[call]() if call == "renew" else None
        death.at = death.steps * 2 - 1 if call == "renew" else _last_step(store, death)
        with pytest.raises(DeathError):
            calls[call]()
        death.at = -1
        assert store.holder("s") == DOOMED
        with pytest.raises(StudyHeldError, match="another-host"):
            store.claim("s", HEIR, 60.0)


def _last_step(store: SqlStore, death: Death) -> int:
    """The number of the last step of a claim, found with one that is given back."""
    store.release("s", store.claim("s", HEIR, 60.0))
    death.steps = 0
    store.claim("s", HEIR, 0.0)
    last = death.steps - 1
    death.steps = 0
    return last
