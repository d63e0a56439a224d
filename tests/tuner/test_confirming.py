"""Confirmation over the stand-in: seeds apart, kills, failures, the opening of the test split."""

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from autopeft.configuration import Configuration
from autopeft.errors import InterruptedStudyError, StudyHeldError, TrialError
from autopeft.execution.inprocess import InProcessExecutor
from autopeft.study.confirmation import ConfirmationRun
from autopeft.study.progress import Progress, Silent
from autopeft.study.records import Holder, StudyState, TrialState
from autopeft.study.sitting import Sitting
from autopeft.tuner import watch
from autopeft.tuner.confirming import ConfirmationTraining, confirmation_settings
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.run_ledger import RunLedger
from storage import SqlStore
from storage.lease import this_process

Lanes = Sequence[tuple[int, Configuration]]
Make = Callable[..., Any]
NAME, STEPS = "toy", 30
CHOSEN, SEEDS = (1, 4, 7), (1, 2, 3)


class Killed(BaseException):
    """What SIGKILL looks like from inside."""


class Heard(Silent):
    """Keeps every report."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.lines: list[str] = []

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)

    def on_event(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def desk(make_desk: Make) -> Any:
    """A finished search; what trained it is forgotten."""
    made = make_desk(trials=6)
    made.create()
    made.tuner().run()
    made.store.release(NAME, made._token)
    made._token = None
    made.runner.packs.clear()
    made.runner.replicates.clear()
    return made


def training(desk: Any, listener: Any = None, pack_size: int = 4) -> ConfirmationTraining:
    if desk._token is not None:
        desk.store.release(NAME, desk._token)
    desk._token = desk.store.claim(NAME, this_process(), 100.0)
    return ConfirmationTraining(
        desk.store,
        NAME,
        desk._token,
        problem=desk.problem,
        executor=InProcessExecutor(desk.runner),
        settings=confirmation_settings(
            pack_size=pack_size,
            memory_limit=None,
            device="cpu",
            total_steps=STEPS,
            head_params=34,
            states=desk.folder / "states",
        ),
        listener=listener or Silent(),
        sitting=Sitting(desk.stopper),
    )


def chosen(desk: Any) -> list[Any]:
    return [desk.store.trial(NAME, number) for number in CHOSEN]


def results(desk: Any) -> dict[tuple[int, int], float | None]:
    runs: list[ConfirmationRun] = desk.store.confirmations(NAME)
    return {(run.trial, run.replicate): run.values.get("accuracy") for run in runs}


def test_every_seed_is_a_pack_of_its_own_and_the_search_stays(desk: Any) -> None:
    before = (desk.store.study(NAME), desk.store.trials(NAME), desk.store.snapshots(NAME))
    heard = Heard()
    training(desk, heard).run(chosen(desk), SEEDS)
    assert desk.runner.packs == [list(CHOSEN)] * 3
    assert desk.runner.replicates == [1, 2, 3]
    runs = desk.store.confirmations(NAME)
    assert [run.state for run in runs] == [TrialState.COMPLETED] * 9
    assert all(run.optimizer_steps == STEPS and run.attempts == 1 for run in runs)
    assert len({run.values["accuracy"] for run in runs if run.trial == 4}) == 3
    study = desk.store.study(NAME)
    assert study.state is StudyState.FINISHED
    spent = {k: v for k, v in study.spent.items() if not k.startswith("confirm_")}
    assert spent == before[0].spent, "a confirmation is not of the search's budget"
    assert study.spent["confirm_optimizer_steps"] == 9 * STEPS
    assert desk.store.trials(NAME) == before[1]
    assert desk.store.snapshots(NAME) == before[2]
    assert (heard.progress[-1].done, heard.progress[-1].total) == (9, 9)
    assert heard.progress[-1].phase == "finished"
    assert sum("with seed 2: accuracy" in line for line in heard.lines) == 3


def test_a_pack_holds_no_more_than_the_studys_packs(desk: Any) -> None:
    training(desk, pack_size=2).run(chosen(desk), [1])
    assert sorted(map(len, desk.runner.packs)) == [1, 2]
    assert sorted(number for pack in desk.runner.packs for number in pack) == list(CHOSEN)


def test_what_has_a_result_is_not_trained_again(desk: Any) -> None:
    training(desk).run(chosen(desk)[:2], [1, 2])
    before = results(desk)
    desk.runner.packs.clear()
    training(desk).run(chosen(desk), [1, 2, 3])
    assert desk.runner.packs == [[7], [7], [1, 4, 7]]
    assert {key: value for key, value in results(desk).items() if key in before} == before


def test_a_kill_after_any_write_loses_nothing(
    make_desk: Make, desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = {"at": 0, "seen": 0}

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            done = write(*given, **named)
            writes["seen"] += 1
            if writes["seen"] == writes["at"]:
                raise Killed
            return done

        return call

    for name in ("add_confirmations", "start_confirmations", "update_confirmations"):
        monkeypatch.setattr(SqlStore, name, counted(getattr(SqlStore, name)))
    training(desk).run(chosen(desk), SEEDS)
    expected, total = results(desk), writes["seen"]
    assert total >= 7
    for at in range(1, total + 1):
        other = make_desk(f"killed-{at}", trials=6)
        other.create()
        other.tuner().run()
        writes.update(at=at, seen=0)
        with pytest.raises(Killed):
            training(other).run(chosen(other), SEEDS)
        writes.update(at=0)
        training(other).run(chosen(other), SEEDS)
        assert results(other) == expected, f"killed after write {at} of {total}"
        assert {run.state for run in other.store.confirmations(NAME)} == {TrialState.COMPLETED}


def test_a_stop_saves_the_lanes_and_goes_on_from_them(desk: Any) -> None:
    def stop(lanes: Lanes, step: int) -> None:
        if desk.runner.replicates == [1, 2] and step == 10:
            desk.stopper.request("test")

    desk.runner.before_step = stop
    with pytest.raises(InterruptedStudyError, match="the same command goes on"):
        training(desk).run(chosen(desk), SEEDS)
    assert desk.store.study(NAME).state is StudyState.FINISHED
    states = {run.replicate: run.state for run in desk.store.confirmations(NAME)}
    assert states == {1: TrialState.COMPLETED, 2: TrialState.WAITING, 3: TrialState.WAITING}
    desk.stopper.reason = ""
    desk.runner.before_step = lambda lanes, step: None
    training(desk).run(chosen(desk), SEEDS)
    assert desk.runner.resumed == [11]
    assert all(run.ended for run in desk.store.confirmations(NAME))


def test_memory_that_is_short_halves_the_pack_and_fails_the_run_alone(desk: Any) -> None:
    def fail(lanes: Lanes, step: int) -> None:
        if 4 in [number for number, _ in lanes]:
            raise TrialError("no memory left", cause="out-of-memory")

    desk.runner.before_step = fail
    training(desk).run(chosen(desk), [1])
    runs = {run.trial: run for run in desk.store.confirmations(NAME)}
    assert (runs[4].state, runs[4].cause) == (TrialState.FAILED, "out-of-memory")
    assert runs[1].state is runs[7].state is TrialState.COMPLETED
    desk.runner.before_step = lambda lanes, step: None
    training(desk).run(chosen(desk), [1])
    assert all(run.ended for run in desk.store.confirmations(NAME))


def test_what_is_tried_again_says_why(desk: Any) -> None:
    def fail(lanes: Lanes, step: int) -> None:
        if len(lanes) == 3:
            raise TrialError("it went away", cause="lost")

    desk.runner.before_step = fail
    training(desk).run(chosen(desk), [1])
    assert all(run.ended for run in desk.store.confirmations(NAME))
    *lost, kept = desk.store.confirmation_attempts(NAME, 4)
    told = [(each["seed"], each["cause"], each["message"]) for each in lost]
    assert told == [(1, "lost", "it went away")] * 2
    assert (kept["cause"], kept["runner"]["device"]) == (None, "cpu")


def test_what_a_replaced_coordinator_found_is_kept_apart(desk: Any) -> None:
    def taken(lanes: Lanes, step: int) -> None:
        if step == 10:
            desk.store.release(NAME, desk._token)
            desk.store.claim(NAME, Holder("another-host", 1, "x:1"), 60.0)

    desk.runner.before_step = taken
    with pytest.raises((StudyHeldError, InterruptedStudyError)):
        training(desk).run(chosen(desk), [2])
    orphans = desk.store.orphans(NAME)
    assert {(each["trial"], each["content"]["replicate"]) for each in orphans} == {
        (number, 2) for number in CHOSEN
    }
    assert not any(run.ended for run in desk.store.confirmations(NAME))


def is_taken(desk: Any) -> bool:
    """Whether a coordinator on another machine takes the study over."""
    try:
        desk.store.claim(NAME, Holder("another-host", 1, "x:1"), 60.0)
    except StudyHeldError:
        return False
    return True


def test_a_step_longer_than_the_lease_keeps_it(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    def slow(lanes: Lanes, step: int) -> None:
        if step == 10:
            time.sleep(3.0)
            found.append(is_taken(desk))

    monkeypatch.setattr(watch, "BUSY_S", 2.0)
    desk.runner.before_step = slow
    training(desk).run(chosen(desk), [1])
    assert found == [False]
    assert all(run.ended for run in desk.store.confirmations(NAME))


def test_an_evaluation_on_the_test_split_longer_than_the_lease_keeps_it(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []

    class SlowList(list[Any]):
        def append(self, tested: Any) -> None:
            time.sleep(3.0)
            found.append(is_taken(desk))

    worker = training(desk)
    worker.run(chosen(desk), SEEDS)
    monkeypatch.setattr(watch, "BUSY_S", 2.0)
    desk.runner.tested = SlowList()
    worker.evaluate_test(chosen(desk), opened(desk, worker))
    assert found == [False, False]


def test_a_seed_that_diverges_is_a_result(desk: Any) -> None:
    odd = desk.store.trial(NAME, 4).configuration
    desk.runner.diverges = lambda configuration: configuration == odd
    training(desk).run(chosen(desk), [1])
    runs = {run.trial: run for run in desk.store.confirmations(NAME)}
    assert runs[4].diverged
    assert runs[4].ended
    desk.runner.packs.clear()
    training(desk).run(chosen(desk), [1])
    assert desk.runner.packs == []


# -- the test split -------------------------------------------------------------------------------


def opened(desk: Any, worker: ConfirmationTraining) -> Any:
    return desk.store.add_opening(
        NAME, desk._token, by="ann@host", trials=CHOSEN[:2], replicates=SEEDS[:2]
    )


def test_kept_weights_are_tested_without_training_anew(desk: Any) -> None:
    worker = training(desk)
    worker.run(chosen(desk), SEEDS)
    assert desk.runner.tested == []
    desk.runner.packs.clear()
    worker.evaluate_test(chosen(desk), opened(desk, worker))
    assert desk.runner.packs == [], "nothing was trained"
    assert desk.runner.resumed == [STEPS, STEPS]
    assert desk.runner.tested == [(1, [1, 4]), (2, [1, 4])], "the opening covers no others"
    tested = {(r.trial, r.replicate) for r in desk.store.confirmations(NAME) if r.test is not None}
    assert tested == {(1, 1), (1, 2), (4, 1), (4, 2)}
    worker.evaluate_test(chosen(desk), desk.store.openings(NAME)[0])
    assert len(desk.runner.tested) == 2, "what was seen is not looked at again"


def test_weights_that_are_lost_are_trained_again(desk: Any) -> None:
    worker = training(desk)
    worker.run(chosen(desk), SEEDS)
    shutil.rmtree(desk.folder / "states")
    desk.runner.packs.clear()
    worker.evaluate_test(chosen(desk), opened(desk, worker))
    assert desk.runner.packs == [[1, 4], [1, 4]]
    assert len(desk.runner.tested) == 2


def test_a_test_that_breaks_off_goes_on_under_the_same_opening(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = training(desk)
    worker.run(chosen(desk), SEEDS)
    opening = opened(desk, worker)
    keep = SqlStore.keep_test

    def killed(*given: Any) -> None:
        keep(*given)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SqlStore, "keep_test", killed)
        with pytest.raises(Killed):
            worker.evaluate_test(chosen(desk), opening)
    worker.evaluate_test(chosen(desk), opening)
    assert desk.runner.tested == [(1, [1, 4]), (2, [1, 4])]
    assert len(desk.store.openings(NAME)) == 1


def test_the_ledger_of_runs_is_a_ledger(desk: Any) -> None:
    trials = {trial.number: trial for trial in chosen(desk)}
    training(desk)
    desk.store.add_confirmations(NAME, desk._token, CHOSEN, [2])
    ledger: Ledger = RunLedger(desk.store, NAME, desk._token, trials, 2)
    assert [trial.number for trial in ledger.trials()] == list(CHOSEN)
    assert {trial.replicate for trial in ledger.trials()} == {2}
    assert ledger.trial(4).state is TrialState.WAITING
    assert ledger.counts()[TrialState.WAITING] == 3
