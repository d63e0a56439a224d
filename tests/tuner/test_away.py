"""Runners that have no place for a while: packs wait or go elsewhere, and nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.errors import AutopeftError, InterruptedStudyError, RunnerAwayError
from autopeft.study.records import TrialState

Make = Callable[..., Any]
NAME = "toy"
RUNGS = {0.4: 12, 1.0: 30}
CHANGES = {"proposals": 8, "pack_size": 4, "rung_steps": RUNGS, "trials": 16}


class Away:
    """A runner that is away at some of the calls that would begin it."""

    def __init__(self, inner: Any, away: Callable[[int], bool]) -> None:
        self._inner, self._away, self.calls = inner, away, 0

    def _look(self) -> None:
        self.calls += 1
        if self._away(self.calls):
            raise RunnerAwayError("no node has room")

    @property
    def identity(self) -> Any:
        self._look()
        return self._inner.identity

    def start(self, *args: Any, **given: Any) -> Any:
        self._look()
        return self._inner.start(*args, **given)

    def last_lines(self) -> str | None:
        return None


class Executor:
    """Some runners."""

    apart = True

    def __init__(self, *runners: Away) -> None:
        self.runners = runners

    def attend(self, call: Callable[[], object]) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""


def run(desk: Any, *runners: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    names = type(desk).tuner.__globals__
    monkeypatch.setitem(names, "StandIns", lambda _: Executor(*runners))
    desk.create()
    desk.tuner().run()


def found(desk: Any) -> list[Any]:
    return [(t.number, t.hash, t.state, t.objectives) for t in desk.store.trials(NAME)]


def causes(desk: Any) -> set[str | None]:
    numbers = [trial.number for trial in desk.store.trials(NAME)]
    return {each["cause"] for number in numbers for each in desk.store.attempts(NAME, number)}


def test_a_lone_runner_is_waited_for(
    make_desk: Make, calm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk("lone", **CHANGES)
    runner = Away(desk.runner, lambda call: call % 3 != 0)
    run(desk, runner, monkeypatch=monkeypatch)
    assert found(desk) == found(calm)
    assert causes(desk) == {None}, "to wait for a place is no failure"


def test_another_runner_takes_the_packs_of_one_that_is_away(
    make_desk: Make, calm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk("two", **CHANGES)
    gone, there = Away(desk.runner, lambda call: call > 2), Away(desk.runner, lambda call: False)
    run(desk, gone, there, monkeypatch=monkeypatch)
    assert gone.calls > 2
    assert [t.number for t in desk.store.trials(NAME)] == list(range(len(found(calm))))
    assert {t.state for t in desk.store.trials(NAME)} <= {
        TrialState.COMPLETED, TrialState.STOPPED,
    }  # fmt: skip
    assert causes(desk) == {None}


def test_a_study_that_is_to_stop_waits_for_no_place(
    make_desk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk("stop", **CHANGES)

    def away(call: int) -> bool:
        if call == 5:
            desk.stopper.request("SIGTERM")
        return True

    with pytest.raises(InterruptedStudyError):
        run(desk, Away(desk.runner, away), monkeypatch=monkeypatch)


def test_a_cluster_that_stays_empty_ends_the_search(
    make_desk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk("empty", **CHANGES)

    def away(call: int) -> bool:
        if call == 5:
            raise AutopeftError("no node for 900 s")
        return True

    with pytest.raises(AutopeftError, match="900 s"):
        run(desk, Away(desk.runner, away), monkeypatch=monkeypatch)
