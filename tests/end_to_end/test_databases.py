"""Searches by the real command on databases that are contended, full, or away for a while."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from postgres_server import PASSWORD, PostgresServer
from small_disks import fill, make_room, mounted
from warm_processes import WarmProcess

from autopeft.errors import StorageError
from autopeft.study.records import StudyState, TrialState
from storage import open_store

Cli = Callable[..., str]
Start = Callable[..., WarmProcess]
MakePath = Callable[..., Path]

CONTENDERS = 8
PATIENCE_S = 3
LIMIT_S = 600.0

pytestmark = pytest.mark.slow


@pytest.fixture(params=["local", "in-process"])
def study(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
) -> Callable[..., Path]:
    """Writes a study file of six trials, for a runner of its own and for none."""

    def make(**blocks: Any) -> Path:
        blocks["execution"] = {"executor": request.param}
        return make_study(tmp_path, bert_folder, make_data(tmp_path / "data"), **blocks)

    return make


def completed(url: str) -> int:
    """Trials that have completed; 0 while the study is not there."""
    try:
        with open_store(url, read_only=True) as store:
            return store.counts("tiny")[TrialState.COMPLETED]
    except (StorageError, KeyError):
        return 0


def wait_until(condition: Callable[[], bool], process: WarmProcess) -> None:
    """Waits for what the process is to bring about."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"it ended first: {process.communicate()}")
        assert time.monotonic() < end
        time.sleep(0.05)


def check_whole(url: str) -> None:
    """Every trial counts once, and has one result at each rung."""
    with open_store(url, read_only=True) as store:
        trials = store.trials("tiny")
        assert [trial.number for trial in trials] == list(range(9))
        assert len({trial.hash for trial in trials}) == 9
        assert {trial.state for trial in trials} <= {TrialState.COMPLETED, TrialState.STOPPED}
        assert store.study("tiny").state is StudyState.FINISHED
        for trial in trials:
            points = [(m.step, m.metric, m.split) for m in store.curve("tiny", trial.number)]
            assert len(points) == len(set(points))
        snapshots = store.snapshots("tiny")
        volumes = [snapshot.hypervolume for snapshot in snapshots]
        assert volumes == sorted(volumes)
        assert snapshots[-1].trials == 9


# -- many coordinators ----------------------------------------------------------------------------


@pytest.mark.parametrize("study", ["in-process"], indirect=True)
def test_of_8_processes_that_start_a_study_one_runs_it(
    tmp_path: Path, database_url: str, study: Callable[..., Path], start_cli: Start, cli: Cli
) -> None:
    study(training={"epochs": 200}, search={"pack": 2})
    arguments = ("search", "study.yaml", "--storage", database_url, "--json")
    processes = [start_cli(tmp_path, *arguments) for _ in range(CONTENDERS)]
    try:
        end = time.monotonic() + LIMIT_S
        while sum(process.poll() is not None for process in processes) < CONTENDERS - 1:
            assert time.monotonic() < end
            time.sleep(0.1)
        (winner,) = [process for process in processes if process.poll() is None]
        losers = [process for process in processes if process is not winner]
        for process in losers:
            out, _ = process.communicate()
            assert process.returncode == 4, out
            last = json.loads(out.splitlines()[-1])
            assert str(winner.pid) in last["errors"][0]["where"]
        with open_store(database_url, read_only=True) as store:
            holder = store.holder("tiny")
            assert holder is not None
            assert holder.pid == winner.pid
        out, _ = winner.communicate(timeout=LIMIT_S)
        assert winner.returncode == 0, out
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    check_whole(database_url)
    with open_store(database_url, read_only=True) as store:
        assert all(trial.attempts == 1 for trial in store.trials("tiny"))
        assert len(store.studies()) == 1


# -- faults ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


def test_a_full_disk_ends_a_search_with_one_line_and_the_same_command_goes_on(
    tmp_path: Path, small_disk: Path, study: Callable[..., Path], start_cli: Start, cli: Cli
) -> None:
    study(training={"epochs": 25}, search={"pack": 1})
    path = small_disk / "autopeft.db"
    url = f"sqlite:///{path}?patience={PATIENCE_S}"
    arguments = ("search", "study.yaml", "--storage", url, "--quiet")
    process = start_cli(tmp_path, *arguments)
    wait_until(lambda: completed(url) >= 1, process)
    ballast = fill(small_disk)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "full" in line
    assert "Traceback" not in err
    before = completed(url)
    assert before >= 1
    make_room(small_disk, "size=32m", ballast)
    cli(tmp_path, *arguments)
    check_whole(url)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_a_disk_that_is_full_for_a_while_is_waited_for(
    tmp_path: Path, small_disk: Path, study: Callable[..., Path], start_cli: Start
) -> None:
    study(training={"epochs": 25}, search={"pack": 1})
    url = f"sqlite:///{small_disk / 'autopeft.db'}?patience=120"
    process = start_cli(tmp_path, "search", "study.yaml", "--storage", url, "--quiet")
    wait_until(lambda: completed(url) >= 1, process)
    ballast = fill(small_disk)
    time.sleep(PATIENCE_S)
    assert process.poll() is None
    make_room(small_disk, "size=32m", ballast)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    check_whole(url)


def test_a_server_that_restarts_twice_is_waited_for(
    tmp_path: Path,
    postgres_server: PostgresServer,
    postgresql_url: str,
    study: Callable[..., Path],
    start_cli: Start,
    cli: Cli,
) -> None:
    study(training={"epochs": 25}, search={"pack": 1})
    url = f"{postgresql_url}?patience=120"
    process = start_cli(tmp_path, "search", "study.yaml", "--storage", url, "--quiet")
    for wanted, crash in ((1, False), (4, True)):
        wait_until(lambda wanted=wanted: completed(url) >= wanted, process)  # type: ignore[misc]
        postgres_server.restart(crash=crash, after_s=2.0)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "works again" in err
    assert PASSWORD not in out + err
    check_whole(url)
    cli(tmp_path, "export", "--pick", "knee", "-o", "best.yaml", "--storage", url)
    optuna = ("--format", "optuna", "-o", "sqlite:///optuna.db")
    cli(tmp_path, "export", *optuna, "--storage", url)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        text = path.read_bytes().decode(errors="replace")
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text


def test_a_server_that_stays_away_ends_it_and_the_same_command_goes_on(
    tmp_path: Path,
    postgres_server: PostgresServer,
    postgresql_url: str,
    study: Callable[..., Path],
    start_cli: Start,
    cli: Cli,
) -> None:
    study(training={"epochs": 25}, search={"pack": 1})
    url = f"{postgresql_url}?patience={PATIENCE_S}"
    arguments = ("search", "study.yaml", "--storage", url, "--quiet")
    process = start_cli(tmp_path, *arguments)
    wait_until(lambda: completed(url) >= 1, process)
    postgres_server.stop()
    try:
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 3, err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "check that the server runs" in line
        assert PASSWORD not in err
        assert "Traceback" not in err
    finally:
        postgres_server.start()
    cli(tmp_path, *arguments)
    check_whole(url)
