"""A search whose output folder's disk is full: for a while, for good, and while it is stopped.

The command and its processes are the real ones, what a runner trains is a stand-in
(`tests/support/stand_in_search.py`), and the disk is a real file system of 1 MB.
"""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in
from postgres_server import PASSWORD, PostgresServer
from small_disks import fill, make_room, mounted
from stand_in_place import Place, placed
from warm_processes import WarmProcess

from autopeft.study.records import TrialState

PATIENCE_S, WAITING_S = 1, 60.0

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Its database is on another disk, and says how patient a search is."""
    with placed(tmp_path, f"sqlite:///{tmp_path}/autopeft.db?patience={PATIENCE_S}") as made:
        yield made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


def until_it_waits(place: Place, process: WarmProcess) -> None:
    """Wait until a rung's lanes have been trained: they cannot be saved."""
    end = time.monotonic() + WAITING_S
    while not any(trial.optimizer_steps for trial in place.trials()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def check_interrupted(place: Place, out: str, error: str) -> None:
    """One line says what to do; nothing has failed, nothing runs, and `status` knows why."""
    (line,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert error in line
    assert "no space left on device (" in line
    assert "the same command goes on" in line
    assert "Traceback" not in out
    (waiting,) = [line for line in out.splitlines() if f"waiting for up to {PATIENCE_S} s" in line]
    assert " free" in waiting
    status = json.loads(place.command("status", "--json"))
    assert status["state"] == "interrupted"
    assert status["interrupted"]["reason"] in line
    assert (status["failures"], status["trials"]["running"]) == ({}, 0)


def interrupted_by_a_full_disk(place: Place, disk: Path, *words: str) -> Path:
    """A search on that disk, until it gives up; what fills it."""
    process = place.start(*words, step_s=0.05)
    place.until_training(process)
    ballast = fill(disk)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 3, out
    check_interrupted(place, out, str(disk / "out"))
    return ballast


def check_completed(place: Place) -> None:
    trials = place.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETED] * 12
    for trial in trials:
        assert trial.objectives["accuracy"] == stand_in.quality(trial.configuration, 60)


def test_a_disk_that_stays_full_interrupts_and_the_same_command_goes_on(place: Place) -> None:
    """As a runner meets it; here without a file system of its own, which needs root."""
    output = place.folder / "autopeft-runs/toy"
    output.mkdir(parents=True)
    full = stand_in.marker(output, "full")
    full.touch()
    out = place.search("--quiet", code=3)
    check_interrupted(place, out, "states/")
    full.unlink()
    place.search()
    check_completed(place)


@pytest.mark.slow
def test_a_runner_that_cannot_save_fails_no_trial(place: Place, disk: Path) -> None:
    words = ("--quiet", "--output-dir", str(disk / "out"))
    ballast = interrupted_by_a_full_disk(place, disk, *words)
    make_room(disk, "size=8m", ballast)
    place.search(*words)
    check_completed(place)


@pytest.mark.slow
@pytest.mark.parametrize("inodes", [4, 9, 14])
def test_a_coordinator_that_makes_no_folder_fails_no_trial(
    place: Place, tmp_path: Path, inodes: int
) -> None:
    """So few inodes that it ends at a log, at a folder of states, or within a save."""
    with mounted(tmp_path / "few", f"size=4m,nr_inodes={inodes}") as disk:
        words = ("--quiet", "--output-dir", str(disk / "out"))
        out = place.search(*words, code=3)
        assert "but no inode" in out
        check_interrupted(place, out, str(disk / "out"))
        make_room(disk, "size=8m,nr_inodes=10000")
        place.search(*words)
        check_completed(place)


@pytest.mark.slow
def test_a_full_disk_and_a_server_that_goes_away_interrupt_one_study_that_completes(
    tmp_path: Path, disk: Path, postgres_server: PostgresServer, postgresql_url: str
) -> None:
    """The same command goes on after the one and after the other."""
    words = ("--quiet", "--output-dir", str(disk / "out"))
    work = tmp_path / "work"
    work.mkdir()
    with placed(work, f"{postgresql_url}?patience={PATIENCE_S}") as place:
        ballast = interrupted_by_a_full_disk(place, disk, *words)
        make_room(disk, "size=8m", ballast)
        process = place.start(*words, step_s=0.05)
        place.until_training(process)
        postgres_server.stop()
        try:
            out, _ = process.communicate(timeout=300)
        finally:
            postgres_server.start()
        assert process.returncode == 3, out
        (line,) = [line for line in out.splitlines() if line.startswith("error: ")]
        assert "check that the server runs" in line
        assert PASSWORD not in out
        place.search(*words)
        check_completed(place)


@pytest.mark.slow
def test_room_that_comes_back_in_time_is_all_it_takes(place: Place, disk: Path) -> None:
    place.url = place.url.replace(f"patience={PATIENCE_S}", "patience=300")
    process = place.start("--output-dir", str(disk / "out"), step_s=0.05)
    place.until_training(process)
    ballast = fill(disk)
    until_it_waits(place, process)
    time.sleep(2.0)
    assert process.poll() is None
    make_room(disk, "size=8m", ballast)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "there is room again" in out
    check_completed(place)
    assert all(len(place.attempts(number)) == 1 for number in range(12))


@pytest.mark.slow
def test_ctrl_c_ends_the_wait(place: Place, disk: Path) -> None:
    place.url = place.url.replace(f"patience={PATIENCE_S}", "patience=300")
    process = place.start("--quiet", "--output-dir", str(disk / "out"), step_s=0.05)
    place.until_training(process)
    fill(disk)
    until_it_waits(place, process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30.0
    assert process.returncode == 130, out
    assert "was stopped (SIGINT) while there was no room to save its lanes" in out
    status: dict[str, Any] = json.loads(place.command("status", "--json"))
    assert (status["state"], status["trials"]["running"]) == ("interrupted", 0)
