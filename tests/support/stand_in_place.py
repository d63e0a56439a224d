"""A folder in which the real command searches over stand-ins, on any database; and its processes.

The command, its store, its lease and its runners' processes are the real ones; what a runner
trains is a stand-in (`stand_in_search`).
"""

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stand_in
import yaml
from warm_processes import WarmProcess

from autopeft.errors import StorageError
from autopeft.execution.states import CohortStates
from autopeft.study.records import TrialRecord, TrialState
from storage import SqlStore, open_store

SUPPORT = Path(stand_in.__file__).parent
SCRIPT = SUPPORT / "stand_in_search.py"
COMMAND = [sys.executable, str(SCRIPT)]
"""For a process that is started in another way than `Place.start` does."""


class Place:
    """A folder with a study file, and searches in it.

    Args:
        folder: An empty one.
        url: Of the database; a SQLite file in the folder by default.
        trials: Of the study's budget.
    """

    def __init__(self, folder: Path, url: str | None = None, *, trials: int = 12) -> None:
        self.folder, self.url = folder, url or f"sqlite:///{folder}/autopeft.db"
        self.started: list[WarmProcess] = []
        plain = {
            "schema": "autopeft/v1",
            "study": {"name": "toy"},
            "model": {"name_or_path": "toy"},
            "data": {"source": "toy.csv"},
            "space": "lora",
            "search": {"baselines": []},
            "budget": {"trials": trials},
        }
        (folder / "study.yaml").write_text(yaml.safe_dump(plain))

    def environment(self, **settings: Any) -> dict[str, str]:
        """Of a search; the settings are those of `stand_in_search`."""
        home = str(SUPPORT.parents[1])
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([home, str(SUPPORT)]),
            "OMP_NUM_THREADS": "1",
            "AUTOPEFT_STORAGE": self.url,
            "STAND_IN": json.dumps(settings),
        }

    def start(self, *words: str, **settings: Any) -> WarmProcess:
        """A search as a process of its own."""
        return self.start_command("search", "study.yaml", *words, **settings)

    def start_command(self, *words: str, **settings: Any) -> WarmProcess:
        """Any command as a process of its own."""
        environment = self.environment(**settings)
        process = WarmProcess(self.folder, words, environment, script=SCRIPT, merged=True)
        self.started.append(process)
        return process

    def search(self, *words: str, code: int = 0, **settings: Any) -> str:
        """Search to the end; what it printed."""
        process = self.start(*words, **settings)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{out}"
        return out

    def command(self, *words: str) -> str:
        """Another command; what it printed."""
        process = WarmProcess(self.folder, words, self.environment(), script=SCRIPT)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    def store(self) -> SqlStore:
        """For reading."""
        return open_store(self.url, read_only=True)

    def trials(self) -> list[TrialRecord]:
        """All there are."""
        try:
            with self.store() as store:
                return store.trials("toy") if store.studies() else []
        except StorageError:  # it is being made
            return []

    def is_stored(self) -> bool:
        """Whether its study is."""
        try:
            with self.store() as store:
                return bool(store.studies())
        except StorageError:  # there is no database, or nothing in it
            return False

    def attempts(self, number: int) -> list[dict[str, Any]]:
        """Of a trial."""
        with self.store() as store:
            return store.attempts("toy", number)

    def check_file(self) -> None:
        """The file of a SQLite database is sound."""
        connection = sqlite3.connect(self.folder / "autopeft.db")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.close()

    def until_training(self, process: WarmProcess | None = None) -> None:
        """Wait until some trial trains: on a runner of that process, where one is given."""
        for _ in range(2400):
            if process is None:
                if any(trial.state is TrialState.RUNNING for trial in self.trials()):
                    return
            elif self.trains_on(children(process.pid)):
                return
            assert process is None or process.poll() is None, "it ended before it trained"
            time.sleep(0.05)
        raise AssertionError("nothing trains")

    def trains_on(self, pids: list[int]) -> bool:
        """Whether one of these runners trains.

        Trials of a dead runner are running, too, until somebody finds out.
        """
        return any(
            attempt["finished_at"] is None and attempt["runner"]["pid"] in pids
            for trial in self.trials()
            if trial.state is TrialState.RUNNING
            for attempt in self.attempts(trial.number)[-1:]
        )

    def saved_steps(self) -> dict[int, int]:
        """Of every trial with a lane state, the step of the newest."""
        found = {}
        for folder in self.folder.glob("autopeft-runs/toy/states/*/cohort-*"):
            states = CohortStates(folder.parent, int(folder.name.partition("-")[2]))
            for number in range(len(self.trials())):
                if saved := states.newest(number):
                    found[number] = saved.step
        return found

    def taken_steps(self) -> list[tuple[int, list[int]]]:
        """Every step that runners took, in its order, and its lanes; what dead ones took, too.

        Only of searches with the setting `notes`.
        """
        path = stand_in.marker(self.folder / "autopeft-runs/toy", "steps")
        lines = path.read_text().splitlines() if path.exists() else []
        return [(step, lanes) for step, lanes in map(json.loads, lines)]

    def spent_steps(self) -> int:
        """Optimizer steps of all lanes that the study has paid for."""
        with self.store() as store:
            return int(store.study("toy").spent.get("optimizer_steps", 0.0))

    def close(self) -> None:
        """End all that was started."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


@contextmanager
def placed(folder: Path, url: str | None = None) -> Iterator[Place]:
    """A place that is closed in the end."""
    made = Place(folder, url)
    try:
        yield made
    finally:
        made.close()


def children(pid: int) -> list[int]:
    """Of a process: of a search, its runners."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Children of all threads of a process, and theirs."""
    own = [
        int(each)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for each in path.read_text().split()
    ]
    return [*own, *(each for child in own for each in descendants(child))]


def all_gone(pids: list[int]) -> bool:
    """Whether processes end within ten seconds."""
    for _ in range(200):
        if not any(Path(f"/proc/{pid}/fd").exists() and _runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
