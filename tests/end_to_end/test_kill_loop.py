"""SIGKILL at any moment, again and again: what was found stays, and the same command goes on.

A victim is stopped first (SIGSTOP), so that it can be said at what moment it is killed: within a
transaction, while trials train, ... It cannot tell, nor do anything about it.
"""

import os
import random
import signal
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import stand_in
from grounds import Ground, Sqlite
from stand_in_place import Place, all_gone, children
from survived import BETWEEN, BOTH, COORDINATOR, RUNNER, STARTING, TRAINING, WRITING, Survived
from warm_processes import WarmProcess

from autopeft.study.records import TrialState

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


class Watched:
    """What may only grow, whatever is killed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._completed: dict[int, Any] = {}
        self._rungs: dict[int, float] = {}
        self._volumes: list[float] = []

    def check(self) -> None:
        trials = self._place.trials()
        if not trials:
            assert not self._rungs
            return
        assert [trial.number for trial in trials] == list(range(len(trials)))
        completed = {
            trial.number: dict(trial.objectives)
            for trial in trials
            if trial.state is TrialState.COMPLETED
        }
        assert self._completed.items() <= completed.items(), "what was completed has changed"
        rungs = {trial.number: trial.rung or 0.0 for trial in trials}
        assert all(rungs[number] >= rung for number, rung in self._rungs.items()), "a rung is lost"
        with self._place.store() as store:
            volumes = [each.hypervolume for each in store.snapshots("toy")]
        assert volumes == sorted(volumes), "the hypervolume fell"
        assert volumes[: len(self._volumes)] == self._volumes, "a snapshot is lost"
        self._completed, self._rungs, self._volumes = completed, rungs, volumes


def strike(ground: Ground, process: WarmProcess, rng: random.Random) -> tuple[str, str]:
    """Kill one of the processes of a search, or all of them; which, and at what moment."""
    process.send_signal(signal.SIGSTOP)
    runners = children(process.pid)
    who = rng.choice([COORDINATOR, RUNNER, BOTH] if runners else [COORDINATOR])
    hit = [rng.choice(runners)] if who == RUNNER else runners
    moment = TRAINING if ground.place.trains_on(hit) else BETWEEN
    if who == COORDINATOR:
        moment = WRITING if ground.writes() else moment if runners else STARTING
    victims = {COORDINATOR: [process.pid], RUNNER: hit, BOTH: [process.pid, *runners]}[who]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    if who == RUNNER:
        process.send_signal(signal.SIGCONT)
        return who, moment
    out, _ = process.communicate()
    assert "Traceback" not in out
    assert all_gone(runners), "a runner outlived its coordinator"
    return who, moment


def kill_loop(ground: Ground, kills: int, seed: int) -> Survived:
    """Kill so often, then let the search come to its end; what was survived."""
    rng, place, began = random.Random(seed), ground.place, time.monotonic()
    watched, told = Watched(place), Survived(ground.name, seed)
    process = None
    while told.kills.total() < kills:
        if process is None or process.poll() is not None:
            assert process is None or process.returncode == -signal.SIGKILL, process.communicate()
            process = place.start("--trials", "100000", "--quiet", step_s=0.003, notes=True)
            if rng.random() < 0.8:
                place.until_training(process)
        time.sleep(rng.uniform(0.0, 0.6))
        told.kills[strike(ground, process, rng)] += 1
        watched.check()
        told.checks += 1
    if process is not None and process.poll() is None:
        process.kill()
        process.communicate()
    begun = max(len(place.trials()), 4)
    place.search("--trials", str(begun), notes=True)
    watched.check()
    ground.check()
    told.attempts = check_end(place, begun)
    check_steps(place, begun, kills)
    told.completed, told.seconds = begun, time.monotonic() - began
    told.checks += 2
    return told


def check_end(place: Place, begun: int) -> Counter[str | None]:
    """Every trial has ended with what it would have ended with anyway; attempts by cause."""
    trials = place.trials()
    assert len(trials) == begun
    assert all(trial.state is TrialState.COMPLETED for trial in trials)
    for trial in trials:
        assert trial.objectives["accuracy"] == stand_in.quality(trial.configuration, 60)
    assert len({trial.hash for trial in trials}) == begun
    causes = Counter(each["cause"] for n in range(begun) for each in place.attempts(n))
    assert set(causes) <= {None, "lost"}
    with place.store() as store:
        assert store.orphans("toy") == []
    return causes


def check_steps(place: Place, begun: int, kills: int) -> None:
    """No step up to a rung was taken again once its rung was behind; so no kill costs more.

    A rung is behind a lane that has taken a step beyond it. What a kill costs at most is what one
    runner's pack has trained between two rungs.
    """
    behind: dict[int, int] = defaultdict(int)
    rungs = [0, *stand_in.RUNGS.values()]
    taken = 0
    for step, lanes in place.taken_steps():
        taken += len(lanes)
        for number in lanes:
            assert step > behind[number], f"trial {number} lost the rung at step {behind[number]}"
            behind[number] = max(rung for rung in rungs if rung < step)
    whole = begun * stand_in.STEPS
    widest = max(after - before for before, after in pairwise(rungs))
    assert whole <= taken <= whole + kills * widest * stand_in.PACK


@pytest.mark.parametrize("ground", ["sqlite"], indirect=True)
def test_five_kills_of_coordinators_and_runners_lose_nothing(ground: Sqlite) -> None:
    kill_loop(ground, 5, seed=0).tell()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_fifty_kills_lose_nothing(ground: Ground, seed: int) -> None:
    told = kill_loop(ground, 50, seed)
    told.tell()
    assert {who for who, _ in told.kills} == {COORDINATOR, RUNNER, BOTH}
    assert told.attempts["lost"] > 0
