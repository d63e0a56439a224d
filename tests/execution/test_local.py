"""Runners in processes of their own: what they say, how they die, that nothing is left of them.

What trains is a stand-in (`tests/support/stand_in_worker.py`); the processes are real.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import stand_in

from autopeft.configuration import Configuration
from autopeft.errors import AutopeftError, InterruptedStudyError, OutputError, TrialError
from autopeft.execution import local, supervised
from autopeft.execution import spare as spares
from autopeft.execution.base import state_path
from autopeft.execution.channel import decoded, encoded
from autopeft.execution.local import Launch, LocalExecutor
from autopeft.execution.spare import Spare
from autopeft.execution.supervised import SupervisedRunner
from autopeft.execution.time_limits import TimeLimits
from autopeft.study.progress import Stopper
from autopeft.training import machine

SUPPORT = Path(stand_in.__file__).parent
WORKER = SUPPORT / "stand_in_worker.py"
LANES: list[tuple[int, Configuration]] = list(enumerate(islice(stand_in.configurations(), 3)))

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs process groups")
Make = Callable[..., SupervisedRunner]
MakeAll = Callable[..., Sequence[SupervisedRunner]]


@pytest.fixture
def stopper() -> Stopper:
    return Stopper()


@pytest.fixture
def make_all(
    tmp_path: Path, stopper: Stopper, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeAll]:
    """The runners of an executor."""
    monkeypatch.setattr(supervised, "BETWEEN_STARTS_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    made: list[LocalExecutor] = []

    def make_runners(
        devices: Sequence[str],
        limit_s: float | None = None,
        spare: Spare | None = None,
        **request: Any,
    ) -> Sequence[SupervisedRunner]:
        known = {"script": {}, "step_s": 0.001, "folder": str(tmp_path)}
        launch = Launch(
            request=known | request,
            devices=devices,
            folder=tmp_path,
            limits=TimeLimits(limit_s),
            stopper=stopper,
            command=[sys.executable, str(WORKER)],
            spare=spare,
        )
        made.append(LocalExecutor(launch))
        return made[-1].runners

    yield make_runners
    for executor in made:
        executor.close()


@pytest.fixture
def make(make_all: MakeAll) -> Make:
    """The runner of one that has a single one."""
    return lambda **given: make_all(["cpu"], **given)[0]


def start(runner: SupervisedRunner, **given: Any) -> Any:
    return runner.start(LANES, resume={}, waited=dict.fromkeys(range(3), 0.0), **given)


def on(step: int) -> bool:
    return True


def gone(pid: int) -> bool:
    """Whether a process ends within seconds (a zombie that nobody reaps has ended)."""
    for _ in range(200):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def failure(call: Callable[[], Any]) -> TrialError:
    with pytest.raises(TrialError) as caught:
        call()
    return caught.value


@pytest.fixture
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spare]:
    monkeypatch.setattr("autopeft.execution.spare.COMMAND", (sys.executable, str(WORKER)))
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    found = Spare(tmp_path / "study")
    yield found
    found.close()


@pytest.mark.parametrize(("kills", "cause"), [(2, "lost"), (3, "out-of-memory")])
def test_a_kill_for_want_of_memory_is_told_from_others(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, cause: str
) -> None:
    """The kernel counts what it has killed in a control group; the file is one as it writes it."""
    events = tmp_path / "memory.events"
    written = "low 0\nhigh 0\nmax 41\noom 3\noom_kill {}\noom_group_kill 0\n"
    events.write_text(written.format(2))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "VMSTAT", tmp_path / "none")
    runner = make(step_s=0.01)
    run = start(runner)

    def killed(step: int) -> bool:
        events.write_text(written.format(kills))
        os.kill(runner.identity["pid"], signal.SIGKILL)
        return True

    error = failure(lambda: run.train(1000, on_step=killed))
    assert error.cause == cause
    assert ("want of memory" in str(error)) == (cause == "out-of-memory")


def test_a_spare_process_is_the_first_runners(
    make: Make, spare: Spare, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare.settle()
    runner = make(spare=spare)
    with monkeypatch.context() as patch:
        patch.setattr(local, "RunnerProcess", None)  # another one cannot be begun
        assert start(runner).train(3, on_step=on)
        spare.close()
        assert start(runner).train(3, on_step=on), "it is the runner's now"
        first = runner.identity["pid"]
    os.kill(first, signal.SIGKILL)
    assert failure(lambda: start(runner)).cause == "lost"
    assert start(runner).train(3, on_step=on)
    assert runner.identity["pid"] != first


def test_a_spare_process_that_nobody_takes_leaves_nothing(spare: Spare, tmp_path: Path) -> None:
    Spare(tmp_path / "study").close()
    assert (tmp_path / "study" / "logs" / "runner-0.log").exists(), "it was there before"
    process = spare.take()
    assert process is not None
    process.close()
    spare.close()
    assert (tmp_path / "study" / "logs" / "runner-0.log").exists(), "it is another's now"
    Spare(tmp_path / "other").close()
    assert not (tmp_path / "other").exists()


def test_a_spare_process_never_takes_the_log_of_another(
    spare: Spare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two creations at once: both find no log, and both hold it for theirs."""
    folder, begin = tmp_path / "race", spares.RunnerProcess
    others: list[Spare] = []

    def slower(command: Any, log: Path) -> Any:
        monkeypatch.setattr(spares, "RunnerProcess", begin)
        others.append(Spare(folder))
        return begin(command, log)

    monkeypatch.setattr(spares, "RunnerProcess", slower)
    loser = Spare(folder)
    (winner,) = others
    log = folder / "logs" / "runner-0.log"
    loser.close()
    assert log.exists(), "the winner's runner writes there"
    log.write_text("why it failed\n")
    winner.close()
    assert log.read_text() == "why it failed\n"


def test_a_pack_is_trained_measured_saved_and_taken_up_again(make: Make, tmp_path: Path) -> None:
    runner, heard = make(), []
    run = start(runner)
    assert run.train(15, on_step=lambda step: heard.append(step) or True)
    assert run.step == 15
    assert heard == sorted(heard)
    expected = [stand_in.quality(configuration, 15) for _, configuration in LANES]
    assert [each.values["accuracy"] for each in run.measure()] == expected, "digits were lost"
    assert [point.step for point in run.curve()[1]] == list(range(1, 16))
    assert run.curve() == {0: [], 1: [], 2: []}
    assert run.profile(2) == {"optimizer_steps": 15, "on_ray": False, "device": "cpu"}
    folder = tmp_path / "saved"
    folder.mkdir()
    run.save(folder)
    resume = {number: state_path(folder, number) for number, _ in LANES}
    again = runner.start(LANES, resume=resume, waited=dict.fromkeys(range(3), 0.0))
    assert again.step == 15
    assert again.train(60, on_step=on)
    assert runner.probe(LANES[0][1])["train_seconds"] == stand_in.params(LANES[0][1])


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-310, 2 / 3, 1e300, -0.0])
def test_numbers_cross_the_pipe_with_all_their_digits(value: float) -> None:
    assert repr(decoded(encoded({"done": value}))["done"]) == repr(value)


def test_a_pause_stops_within_steps_and_the_run_goes_on(make: Make) -> None:
    run = start(make(step_s=0.01))
    assert not run.train(60, on_step=lambda step: step < 10)
    stood = run.step
    assert 10 <= stood < 60
    assert max(point.step for point in run.curve()[0]) == stood
    assert run.train(60, on_step=on), "an old pause ended a new training"


def test_whoever_waits_is_attended(make: Make) -> None:
    runner, calls = make(step_s=0.02), []
    runner.attended = lambda: calls.append(1)
    start(runner).train(30, on_step=on)
    assert len(calls) > 3


@pytest.mark.parametrize(
    ("script", "cause", "told", "survives"),
    [
        ({"1": "die"}, "lost", "SIGKILL", False),
        ({"1": "poison"}, "lost", "CUDA error", False),
        ({"1": "err"}, "error", "ValueError: this configuration cannot be", True),
        ({"1": "wide 8"}, "out-of-memory", "out of memory", True),
    ],
)
def test_a_failure_has_its_cause_and_the_next_pack_a_runner(
    make: Make, script: dict[str, str], cause: str, told: str, survives: bool
) -> None:
    runner = make(script=script)
    pid = runner.identity["pid"]
    run = start(runner)
    error = failure(lambda: run.train(15, on_step=on))
    assert (error.cause, told in str(error)) == (cause, True)
    assert f"trial 1: now {script['1']}" in (runner.last_lines() or "")
    healthy = runner.start(LANES[:1], resume={}, waited={0: 0.0})
    assert healthy.train(15, on_step=on)
    assert (runner.identity["pid"] == pid) is survives
    assert survives or gone(pid)


def test_fewer_rows_at_once_reach_the_runner(make: Make) -> None:
    runner = make(script={"1": "wide 12"})
    assert failure(lambda: start(runner).train(15, on_step=on)).cause == "out-of-memory"
    assert start(runner, micro_batch_size=4).train(15, on_step=on)


def test_every_device_has_a_runner_of_its_own(make_all: MakeAll, tmp_path: Path) -> None:
    """Names of GPUs reach the processes that are to use them; one is begun again by itself."""
    devices = ["cuda:1", "cuda:0"]
    runners = make_all(devices)
    runs = [start(runner) for runner in runners]
    assert all(run.train(2, on_step=on) for run in runs)
    assert [run.profile(0)["device"] for run in runs] == devices
    assert [runner.identity["device"] for runner in runners] == devices
    pids = [runner.identity["pid"] for runner in runners]
    assert len(set(pids)) == 2
    os.kill(pids[1], signal.SIGKILL)
    assert failure(lambda: runs[1].train(15, on_step=on)).cause == "lost"
    again = start(runners[1])
    assert again.train(15, on_step=on)
    assert again.profile(0)["device"] == "cuda:0"
    assert runs[0].train(15, on_step=on), "the other one was harmed"
    assert runners[0].identity["pid"] == pids[0]
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs == ["runner-0.log", "runner-1.log"]


def test_one_that_hangs_is_ended_with_its_children(make: Make, tmp_path: Path) -> None:
    runner = make(limit_s=1.5, script={"1": "hang"})
    run = start(runner)
    began = time.monotonic()
    assert failure(lambda: run.train(15, on_step=on)).cause == "timeout"
    assert time.monotonic() - began < 60
    pids = stand_in.marker(tmp_path, "children").read_text().split()
    assert len(pids) == 2
    assert all(gone(int(pid)) for pid in pids)


def test_what_takes_too_long_after_a_signal_is_cut_off(make: Make, stopper: Stopper) -> None:
    runner = make(script={"1": "hang"})
    run, pid = start(runner), runner.identity["pid"]
    stopper.request("SIGTERM", within_s=0.5)
    with pytest.raises(InterruptedStudyError, match="SIGTERM"):
        run.train(15, on_step=on)
    assert gone(pid)


def test_a_runner_without_room_keeps_its_pack(make: Make, tmp_path: Path) -> None:
    runner, folder = make(), tmp_path / "states"
    folder.mkdir()
    full = stand_in.marker(tmp_path, "full")
    run = start(runner)
    assert run.train(5, on_step=on)
    full.touch()
    with pytest.raises(OutputError, match=f"{folder}: no space left on device .* free"):
        run.save(folder)
    full.unlink()
    run.save(folder)
    assert state_path(folder, 2).exists()
    assert run.train(8, on_step=on), "the pack is gone"


def test_a_runner_without_a_log_is_begun_once_there_is_room(make: Make, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder is to be")
    runner = make()
    with pytest.raises(OutputError, match=r"logs/runner-0\.log"):
        start(runner)
    (tmp_path / "logs").unlink()
    assert start(runner).train(3, on_step=on)


def test_a_runner_that_cannot_load_says_why(make: Make, tmp_path: Path) -> None:
    runner = make(script=None, step_s=None, folder=None)  # no folder that could be a path
    with pytest.raises(AutopeftError, match=r"failed 3 times while it loaded.*TypeError"):
        start(runner)
    assert "Traceback" in (tmp_path / "logs/runner-0.log").read_text()


COORDINATOR = """
import sys
from pathlib import Path
import stand_in
from autopeft.execution.local import Launch, LocalExecutor
from autopeft.execution.spare import Spare
from autopeft.execution.time_limits import TimeLimits
from autopeft.study.progress import Stopper

folder, worker = Path(sys.argv[1]), sys.argv[2]
request = {"script": {"0": "hang"}, "step_s": 0.001, "folder": str(folder)}
command = [sys.executable, worker]
launch = Launch(request, ["cpu"], folder, TimeLimits(), Stopper(), command)
[runner] = LocalExecutor(launch).runners
run = runner.start([(0, next(stand_in.configurations()))], resume={}, waited={0: 0.0})
print(runner.identity["pid"], flush=True)
run.train(15, on_step=lambda step: True)
"""


def test_a_runner_does_not_outlive_its_coordinator(tmp_path: Path) -> None:
    home = Path(local.__file__).resolve().parents[2]
    paths = os.pathsep.join([str(home), str(SUPPORT)])
    process = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(tmp_path), str(WORKER)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pid, marker = int(process.stdout.readline()), stand_in.marker(tmp_path, "children")
    while not marker.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert gone(pid)
    assert all(gone(int(each)) for each in marker.read_text().split()), "a child was left"
