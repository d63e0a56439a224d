"""A search that is killed, stopped, suspended and starved, as people and machines do it.

The command, its store, its lease and its runners' processes are the real ones; what a runner
trains is a stand-in (`tests/support/stand_in_search.py`).
"""

import json
import os
import pty
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import stand_in
from grounds import Ground
from stand_in_place import COMMAND, Place, all_gone, children, descendants
from warm_processes import WarmProcess

from autopeft.study.records import TrialState

SIGNALS_S = 30.0
"""Within this a search ends after a signal."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@pytest.fixture
def place(ground: Ground) -> Place:
    return ground.place


# -- R6, R7, R8: causes ---------------------------------------------------------------------------


def test_every_cause_is_told_apart_and_the_study_goes_on(place: Place) -> None:
    script = {
        "0": "die",  # its own fault: it kills every runner it is on
        "2": "once die",
        "4": "err",
        "5": "wide 3",  # fits alone, with 2 of 8 rows at once
        "7": "diverge",
        "9": "wide 0",  # never fits
        "11": "hang",
    }
    place.search(script=script, limit_s=3.0, step_s=0.001)
    trials = place.trials()
    failed = {t.number: t.cause for t in trials if t.state is TrialState.FAILED}
    assert failed == {
        0: "lost", 4: "error", 7: "diverged", 9: "out-of-memory", 11: "timeout",
    }  # fmt: skip
    completed = [t for t in trials if t.state is TrialState.COMPLETED]
    assert len(completed) == 7
    for trial in completed:
        assert trial.objectives["accuracy"] == stand_in.quality(trial.configuration, 60)
    causes = {number: [each["cause"] for each in place.attempts(number)] for number in range(12)}
    assert causes[0] == ["lost"] * 7, "a pack of 4 twice, of 2 twice, alone three times"
    assert causes[2][:2] == ["lost", "lost"]
    assert causes[9].count("out-of-memory") == 2 + 4, "a pack of 4, of 2, 8, 4, 2 and 1 rows"
    assert causes[11][-3:] == ["timeout"] * 3, "in a pack, and then twice by itself"
    pids = stand_in.marker(place.folder / "autopeft-runs/toy", "children").read_text().split()
    assert len(pids) >= 4
    assert all_gone([int(pid) for pid in pids])
    _check_what_is_shown(place)


def _check_what_is_shown(place: Place) -> None:
    status = json.loads(place.command("status", "--json"))
    assert status["failures"] == {
        "diverged": 1, "error": 1, "lost": 1, "out-of-memory": 1, "timeout": 1,
    }  # fmt: skip
    assert status["attempts"]["lost"] >= 7
    shown = place.command("show", "0")
    assert "cause" in shown
    assert "killed by SIGKILL" in shown
    assert "trial 0: now die" in shown, "the runner's last lines are missing"
    assert "on cpu" in shown
    (attempt, *_) = json.loads(place.command("show", "4", "--json"))["attempts"]
    assert attempt["runner"]["device"] == "cpu"
    assert "ValueError: this configuration cannot be" in attempt["log"]


@pytest.mark.slow
def test_several_runners_train_side_by_side(place: Place) -> None:
    place.search("--trials", "24", devices=["cpu", "cpu", "cpu"], script={"3": "once die"})
    trials = place.trials()
    assert [t.state for t in trials] == [TrialState.COMPLETED] * 24
    for trial in trials:
        assert trial.objectives["accuracy"] == stand_in.quality(trial.configuration, 60)
    pids = {place.attempts(n)[-1]["runner"]["pid"] for n in range(24)}
    assert len(pids) >= 3


# -- R4: late writers -----------------------------------------------------------------------------


def suspend(process: WarmProcess, ground: Ground) -> None:
    """Stop a process between two transactions: within one, it would lock all others out."""
    for _ in range(100):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)  # a statement that was sent comes to its end
        if not ground.writes():
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("it is always within a transaction")


@pytest.mark.slow
def test_one_that_stood_still_too_long_finds_itself_replaced(ground: Ground) -> None:
    place = ground.place
    settings = {"lease_s": 2.0, "poll_s": 0.2}
    late = place.start(**settings, step_s=0.05)
    place.until_training(late)
    suspend(late, ground)
    time.sleep(2.5)
    place.search(**settings)
    before = place.trials()
    assert [t.state for t in before] == [TrialState.COMPLETED] * 12
    late.send_signal(signal.SIGCONT)
    out, _ = late.communicate(timeout=60)
    assert late.returncode == 0, out
    assert "another coordinator has taken over" in out
    assert place.trials() == before
    with place.store() as store:
        orphans = store.orphans("toy")
        token = store.attempts("toy", 0)
    assert orphans, "the late write was lost"
    assert {each["token"] for each in orphans} == {1}
    assert [each["cause"] for each in token] == ["lost", None]
    assert "kept apart" in place.command("status")
    number = int(orphans[0]["trial"])
    assert "Too late" in place.command("show", str(number))
    assert json.loads(place.command("show", str(number), "--json"))["orphans"]


# -- R9: signals ----------------------------------------------------------------------------------


def in_terminal(place: Place, **settings: Any) -> tuple[int, int]:
    """A search at a terminal of its own: process id, and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place.folder)
        os.execve(
            sys.executable, [*COMMAND, "search", "study.yaml"], place.environment(**settings)
        )
    return pid, terminal


def exit_code(pid: int, terminal: int) -> tuple[int, float]:
    """How it ended, and after how long; reads the terminal meanwhile, as a terminal does."""
    began = time.monotonic()
    os.set_blocking(terminal, False)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            os.close(terminal)
            return os.waitstatus_to_exitcode(status), time.monotonic() - began
        assert time.monotonic() - began < 60, "it does not end"
        try:
            os.read(terminal, 1 << 16)
        except (BlockingIOError, OSError):
            time.sleep(0.02)


def press_ctrl_c(terminal: int) -> None:
    os.write(terminal, b"\x03")


def send_sigterm(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("how", ["ctrl-c", pytest.param("sigterm", marks=pytest.mark.slow)])
def test_a_signal_saves_the_lanes_and_ends_the_search(
    ground: Ground, place: Place, how: str
) -> None:
    pid, terminal = in_terminal(place, step_s=0.05)
    place.until_training()
    time.sleep(0.6)
    runners = children(pid)
    press_ctrl_c(terminal) if how == "ctrl-c" else send_sigterm(pid)
    code, seconds = exit_code(pid, terminal)
    assert code == (130 if how == "ctrl-c" else 143)
    assert seconds < SIGNALS_S
    assert all_gone(runners)
    ground.check()
    steps = {trial.number: trial.optimizer_steps for trial in place.trials()}
    assert steps[0] > 0, "nothing was saved"
    assert place.attempts(0)[0]["cause"] == "interrupted"
    assert place.saved_steps() == {number: taken for number, taken in steps.items() if taken}
    assert place.spent_steps() == sum(steps.values())
    goes_on_from_what_was_saved(place)
    assert [point.step for point in _losses(place, 0)] == list(range(1, 61))


def goes_on_from_what_was_saved(place: Place) -> None:
    """The next sitting takes the steps that no lane state holds, and no other."""
    saved, before = place.saved_steps(), place.spent_steps()
    assert saved[0] > 0, "nothing was saved"
    place.search()
    assert [trial.state for trial in place.trials()] == [TrialState.COMPLETED] * 12
    assert place.spent_steps() - before == 12 * stand_in.STEPS - sum(saved.values())


def _losses(place: Place, number: int) -> list[Any]:
    with place.store() as store:
        return [point for point in store.curve("toy", number) if point.split == "train"]


def test_a_signal_to_every_process_of_the_job_saves_the_lanes(
    ground: Ground, place: Place
) -> None:
    """As `scancel` and a service manager send it: runners may have it before their coordinator."""
    process = place.start(step_s=0.05)
    place.until_training(process)
    time.sleep(0.6)
    others = descendants(process.pid)
    assert len(others) >= 2, "a runner and its guard"
    for pid in (*others, process.pid):
        os.kill(pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=SIGNALS_S)
    assert process.returncode == 143
    assert "stopped (SIGTERM); all is saved" in out
    assert all_gone(others)
    ground.check()
    assert {each["cause"] for each in place.attempts(0)} == {"interrupted"}
    assert place.spent_steps() == sum(place.saved_steps().values())
    goes_on_from_what_was_saved(place)


def test_a_signal_after_a_runner_has_died_does_not_say_that_all_is_saved(place: Place) -> None:
    process = place.start(step_s=0.05)
    place.until_training(process)
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    for pid in children(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=SIGNALS_S)
    assert process.returncode == 143
    assert "all is saved" not in out
    told = "have trained since they were last saved is lost: the runner died: killed by SIGKILL"
    assert told in " ".join(out.split())
    place.search()
    assert [trial.state for trial in place.trials()] == [TrialState.COMPLETED] * 12


def test_a_signal_is_heard_while_the_backbone_loads(place: Place) -> None:
    process = place.start(loading_s=60.0)
    while not (place.folder / "loading").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=SIGNALS_S)
    assert process.returncode == 143
    assert "stopped (SIGTERM) while it was prepared; nothing is stored" in out
    assert not place.is_stored()


def stopped_by_sigterm(ground: Ground, marker: Path, **settings: Any) -> str:
    """What a search says that gets SIGTERM when a file appears, and ends in time."""
    process = ground.place.start(**settings)
    while not marker.exists():
        assert process.poll() is None
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 143, out
    assert time.monotonic() - began < SIGNALS_S
    ground.check()
    return out


@pytest.mark.slow
def test_an_evaluation_that_takes_longer_than_a_signal_leaves_costs_no_step(
    ground: Ground, place: Place
) -> None:
    marker = stand_in.marker(place.folder / "autopeft-runs/toy", "measuring")
    stopped_by_sigterm(ground, marker, measure_s=60.0)
    assert [trial.state for trial in place.trials()[:4]] == [TrialState.WAITING] * 4
    saved = place.saved_steps()
    assert [saved[number] for number in range(4)] == [stand_in.STEPS] * 4
    goes_on_from_what_was_saved(place)


def test_a_signal_is_heard_while_the_searcher_proposes(ground: Ground, place: Place) -> None:
    out = stopped_by_sigterm(ground, place.folder / "asking", ask_s=60.0)
    assert "stopped (SIGTERM); all is saved" in out
    assert not place.trials()
    place.search()
    assert [trial.state for trial in place.trials()] == [TrialState.COMPLETED] * 12


@pytest.mark.slow
def test_a_step_that_takes_longer_than_a_signal_leaves_is_given_up(
    ground: Ground, place: Place
) -> None:
    marker = stand_in.marker(place.folder / "autopeft-runs/toy", "stepping")
    out = stopped_by_sigterm(ground, marker, script={"1": "once slow 60"})
    assert "within a step that takes too long" in out
    place.search()
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETED] * 12
    assert place.attempts(1)[0]["cause"] == "interrupted"


@pytest.mark.slow
def test_what_one_runner_gave_up_is_not_saved_by_another(ground: Ground, place: Place) -> None:
    marker = stand_in.marker(place.folder / "autopeft-runs/toy", "stepping")
    two = ["cpu", "cpu"]
    out = stopped_by_sigterm(
        ground, marker, devices=two, step_s=0.05, script={"5": "once slow 60"}
    )
    assert "all is saved" not in out
    told = "what trials 4, 5, 6, 7 have trained since they were last saved is lost"
    assert told in " ".join(out.split())
    assert set(place.saved_steps()) >= {0, 1, 2, 3}
    goes_on_from_what_was_saved(place)


@pytest.mark.slow
def test_a_second_signal_stops_now(ground: Ground, place: Place) -> None:
    pid, terminal = in_terminal(place, step_s=30.0)
    place.until_training()
    runners = children(pid)
    press_ctrl_c(terminal)
    time.sleep(0.5)
    press_ctrl_c(terminal)
    code, seconds = exit_code(pid, terminal)
    assert (code, seconds < 5.0) == (130, True)
    assert all_gone(runners)
    ground.check()


# -- saving, sittings -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_running_pack_is_saved_between_rungs_too(place: Place) -> None:
    process = place.start(step_s=0.5, save_s=0.3)
    place.until_training(process)
    while not place.saved_steps():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    first = place.trials()[0]
    assert first.rung is None
    assert first.optimizer_steps < 15
    saved = place.saved_steps()
    assert set(saved) == {0, 1, 2, 3}
    assert 0 < saved[0] < 15
    goes_on_from_what_was_saved(place)


@pytest.mark.slow
def test_a_sitting_ends_when_it_is_told_to(place: Place) -> None:
    out = place.search("--stop-after", "5s", step_s=0.4, code=75)
    assert "the time of this sitting is over" in out
    assert place.trials()
    place.search()
    assert [t.state for t in place.trials()] == [TrialState.COMPLETED] * 12


@pytest.mark.slow
def test_a_budget_that_was_raised_goes_on(place: Place) -> None:
    out = place.search("--set", "budget.optimizer_steps=100", code=1)  # no front yet
    assert "trials that were begun wait" in out
    with place.store() as store:
        spent = store.study("toy").spent["optimizer_steps"]
    assert 100 <= spent <= 100 + 2 * 4 * 15
    place.search("--set", "budget.optimizer_steps=100000")
    assert [t.state for t in place.trials()] == [TrialState.COMPLETED] * 12
