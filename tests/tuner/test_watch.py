"""The lease of a coordinator that is too busy to look: a thread renews it, within its limits."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from autopeft.errors import StorageError, StudyHeldError
from autopeft.study.records import Holder
from autopeft.study.sitting import Sitting
from autopeft.tuner import watch
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.watch import Watch
from storage.lease import this_process

NAME, LEASE_S = "toy", 2.0
ELSEWHERE = Holder("another-host", 1, "space:1")


class Case:
    """A study, a lease on it that runs out soon, and a watch over it."""

    def __init__(self, desk: Any) -> None:
        self.store, self.sitting = desk.store, Sitting()
        self.token = self.store.claim(NAME, this_process(), LEASE_S)
        ledger, no_budgets = Ledger(self.store, NAME, self.token), cast("Any", None)
        self.watch = Watch(ledger, no_budgets, self.sitting, apart=False)

    def is_taken(self) -> bool:
        """Whether a coordinator on another machine takes the study over."""
        try:
            self.store.claim(NAME, ELSEWHERE, 60.0)
        except StudyHeldError:
            return False
        return True


@pytest.fixture
def case(make_desk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setattr(watch, "BUSY_S", LEASE_S)
    desk = make_desk()
    desk.create()
    yield Case(desk)
    assert "lease" not in {thread.name for thread in threading.enumerate()}


def test_what_takes_longer_than_the_lease_keeps_it(case: Case) -> None:
    with case.watch.kept():
        time.sleep(1.5 * LEASE_S)
        assert not case.is_taken()
    assert not case.sitting.stopping()
    time.sleep(1.2 * LEASE_S)
    assert case.is_taken(), "it was renewed after the block"


def test_once_a_stop_is_asked_for_nothing_renews(case: Case) -> None:
    with case.watch.kept():
        case.sitting.stopper.request("SIGTERM")
        time.sleep(1.3 * LEASE_S)
        assert case.is_taken()


def test_a_coordinator_that_gives_no_sign_of_life_is_not_spoken_for_for_ever(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUIET_S", 1.5 * LEASE_S)
    with case.watch.kept():
        time.sleep(1.2 * LEASE_S)
        assert not case.is_taken()
        time.sleep(1.7 * LEASE_S)
        assert case.is_taken()


def test_each_look_is_a_sign_of_life(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[float] = []
    monkeypatch.setattr(Ledger, "renew", lambda *_: renewed.append(time.monotonic()))
    monkeypatch.setattr(watch, "QUIET_S", 1.0)
    monkeypatch.setattr(watch, "POLL_S", 600.0)  # so that looks themselves renew nothing
    case.watch.stopping()
    began = time.monotonic()
    with case.watch.kept():
        for _ in range(6):
            time.sleep(0.6)
            case.watch.stopping()
    assert max(renewed) > began + 2.0


def test_one_that_lost_the_lease_is_asked_to_stop_and_its_next_write_is_refused(
    case: Case,
) -> None:
    with case.watch.kept():
        case.store.release(NAME, case.token)
        case.store.claim(NAME, ELSEWHERE, 60.0)
        time.sleep(0.5 * LEASE_S)
        assert case.watch.reason == "another coordinator has taken over"
    with pytest.raises(StudyHeldError, match="its lease passed from this coordinator"):
        case.store.requeue_trials(NAME, case.token)
    assert case.store.holder(NAME) == ELSEWHERE


def test_a_database_that_fails_meanwhile_is_asked_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, fails = Ledger.renew, iter([False, True, True])

    def failing(ledger: Ledger, ttl_s: float) -> None:
        if next(fails, False):
            raise StorageError("the database is locked")
        renew(ledger, ttl_s)

    monkeypatch.setattr(Ledger, "renew", failing)
    with case.watch.kept():
        time.sleep(1.5 * LEASE_S)
        assert not case.is_taken()
