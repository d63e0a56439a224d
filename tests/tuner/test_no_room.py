"""A full or failing disk where a study keeps its files, and a power failure: nothing lost."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import InterruptedStudyError, OutputError, StorageError
from autopeft.study import patience
from autopeft.study.records import StudyState, TrialState
from storage import SqlStore

Make = Callable[..., Any]
NAME, STEPS = "toy", 30
RUNGS = {0.4: 12, 1.0: STEPS}


class Killed(BaseException):
    """What a power failure looks like from inside."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(SqlStore, "patience_s", 0.3)


@pytest.fixture
def _patient(_quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for as long as a slow machine may take."""
    monkeypatch.setattr(SqlStore, "patience_s", 60.0)


@pytest.fixture
def desk(make_desk: Make) -> Any:
    made = make_desk(rung_steps=RUNGS, stops=False, trials=4)
    made.create()
    return made


def no_room(folder: Path) -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def states_of(desk: Any) -> set[TrialState]:
    return {trial.state for trial in desk.store.trials(NAME)}


def causes(desk: Any) -> set[str | None]:
    trials = desk.store.trials(NAME)
    return {a["cause"] for trial in trials for a in desk.store.attempts(NAME, trial.number)}


def check_finished(desk: Any) -> None:
    """Every trial has completed, in its first or a later sitting."""
    assert states_of(desk) == {TrialState.COMPLETED}
    assert len(desk.store.trials(NAME)) == 7
    assert desk.store.study(NAME).state is StudyState.FINISHED
    assert desk.store.study(NAME).facts["interrupted"] is None


@pytest.mark.usefixtures("_patient")
def test_a_disk_that_is_full_for_a_while_is_waited_for(
    desk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    left = [no_room, no_room, no_room]
    desk.runner.before_save = lambda folder: left and left.pop()(folder)
    desk.tuner().run()
    check_finished(desk)
    assert causes(desk) == {None}
    assert desk.runner.packs[:2] == [[0, 1, 2], [0, 1, 2]], "a rung each: nothing was trained anew"
    waiting, again = (record.message for record in caplog.records)
    assert waiting.startswith(
        f"{desk.folder / 'states' / 'cohort-00000'}: no space left on device"
    )
    assert "MiB free" in waiting
    assert "waiting for up to 60 s" in waiting
    assert again.startswith("there is room again")


@pytest.mark.parametrize("where", ["runner", "coordinator"])
def test_one_that_stays_full_ends_with_one_line_and_the_same_command_goes_on(
    desk: Any, where: str
) -> None:
    states = desk.folder / "states"
    if where == "runner":
        desk.runner.before_save = no_room
    else:
        states.write_text("a file where a folder is to be")
    with pytest.raises(OutputError, match=r"toy.*could not be saved.*states") as caught:
        desk.tuner().run()
    assert "the same command goes on" in str(caught.value)
    assert caught.value.exit_code == 3
    study = desk.store.study(NAME)
    assert study.state is StudyState.INTERRUPTED
    assert study.facts["interrupted"] == {
        "reason": caught.value.message,
        "hint": caught.value.hint,
    }
    assert states_of(desk) == {TrialState.WAITING}
    assert causes(desk) == {"interrupted"}
    desk.runner.before_save = lambda folder: None
    if where == "coordinator":
        states.unlink()
    desk.stopper.reason = ""
    desk.tuner().run()
    check_finished(desk)


@pytest.mark.parametrize("how", ["signal", "database"])
def test_a_stop_ends_the_wait(desk: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "GRACE_S", 0.02)
    monkeypatch.setattr(SqlStore, "patience_s", 300.0)
    monkeypatch.setattr("autopeft.tuner.watch.POLL_S", 0.0)

    def full(folder: Path) -> None:
        desk.stopper.request("SIGINT") if how == "signal" else desk.store.request_stop(NAME)
        no_room(folder)

    desk.runner.before_save = full
    with pytest.raises(InterruptedStudyError, match=r"(SIGINT|asked to stop)\) .*no space left"):
        desk.tuner().run()
    assert desk.store.study(NAME).state is StudyState.INTERRUPTED
    assert states_of(desk) == {TrialState.WAITING}


@pytest.mark.usefixtures("_patient")
def test_a_full_disk_elsewhere_than_in_a_save_is_no_trials_fault(desk: Any) -> None:
    left = [no_room]

    def once(lanes: Sequence[Any], step: int) -> None:
        if step == 20 and left:
            left.pop()(desk.folder / "trunk")

    desk.runner.before_step = once
    desk.tuner().run()
    check_finished(desk)
    assert causes(desk) == {None}
    assert desk.runner.resumed[0] == 12, "it goes on from what was saved"


@pytest.mark.usefixtures("_patient")
def test_the_lanes_of_the_full_budget_are_waited_for_too(make_desk: Make) -> None:
    desk = make_desk(trials=4)
    desk.create()
    left = [no_room, no_room]
    desk.runner.before_save = lambda folder: left and left.pop()(folder)
    desk.tuner().run()
    check_finished(desk)
    assert not left


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("a fault\nof the program"), "ValueError: a fault of the program"),
     (KeyboardInterrupt(), "KeyboardInterrupt"),
     (FileNotFoundError(2, "no file", "x"), "FileNotFoundError: [Errno 2] no file: 'x'")],
)  # fmt: skip
def test_whatever_ends_a_sitting_leaves_nothing_running_and_says_why(
    desk: Any, error: BaseException, reason: str
) -> None:
    def broken(lanes: Sequence[Any], step: int) -> None:
        raise error

    desk.runner.before_step = broken
    with pytest.raises(type(error)):
        desk.tuner().run()
    study = desk.store.study(NAME)
    assert study.state is StudyState.INTERRUPTED
    assert study.facts["interrupted"] == {"reason": reason, "hint": "the same command goes on"}
    assert states_of(desk) == {TrialState.WAITING}
    attempt, *_ = desk.store.attempts(NAME, 0)
    assert (attempt["cause"], attempt["message"]) == ("interrupted", reason)
    desk.runner.before_step = lambda lanes, step: None
    desk.tuner().run()
    check_finished(desk)


def test_a_lost_database_is_what_is_told_of_a_lost_database(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise StorageError("the database is away")

    def lose_it(lanes: Sequence[Any], step: int) -> None:
        monkeypatch.setattr(SqlStore, "requeue_trials", away)
        raise StorageError("the database is gone")

    desk.runner.before_step = lose_it
    with pytest.raises(StorageError, match="is gone"):
        desk.tuner().run()


# -- after a power failure ------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_bytes(b"")


def turned_to_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("tear", [cut_short, turned_to_zeros])
def test_a_torn_state_begins_anew_and_the_others_go_on(
    make_desk: Make, tear: Callable[[Path], None]
) -> None:
    calm, desk = (
        make_desk(name, rung_steps=RUNGS, stops=False, trials=4) for name in ("calm", "torn")
    )
    calm.create()
    calm.tuner().run()
    desk.create()

    def power_failure(lanes: Sequence[Any], step: int) -> None:
        if lanes[0][0] == 3 and step == 20:
            raise Killed

    desk.runner.before_step = power_failure
    with pytest.raises(Killed):
        desk.tuner().run()
    (torn,) = desk.folder.glob("states/cohort-00001/*/trial-00004.safetensors")
    tear(torn)
    desk.runner.before_step = lambda lanes, step: None
    desk.runner.packs.clear()
    told: list[str] = []
    desk.listener.on_event = told.append
    desk.tuner().run()
    check_finished(desk)
    assert desk.runner.packs[:2] == [[3, 5, 6], [4]]
    assert desk.runner.resumed == [12]
    message = "its state of step 12 is torn, so it begins anew"
    assert f"trial 4: {message}" in told
    attempts = [(a["cause"], a["message"]) for a in desk.store.attempts(NAME, 4)]
    assert attempts == [("lost", None), ("lost", message), (None, None)]
    for one, other in zip(calm.store.trials(NAME), desk.store.trials(NAME), strict=True):
        assert one.objectives == other.objectives
