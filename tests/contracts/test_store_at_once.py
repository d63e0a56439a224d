"""What every Store must keep to while many use it at once, and whatever the order of calls."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from autopeft.configuration import Configuration, Group
from autopeft.errors import StudyHeldError
from autopeft.study.records import NewStudy, NewTrial, Origin, TrialState
from storage import SqlStore
from storage.lease import this_process

CONTENDER = Path(__file__).with_name("store_contender.py")
TTL_S = 60.0

STUDY = NewStudy("rte", {"study": {"name": "rte", "seed": 7}}, "abc", (), {}, {}, {})
TRAINING = {"learning_rate": 2e-4, "weight_decay": 0.0, "warmup_ratio": 0.06}
TRIAL = NewTrial(
    Configuration.of([Group.of("lora", [0, 1], ["query"], rank=8)], training=TRAINING),
    Origin.SEARCHER,
    trainable_params=4096,
    head_params=770,
    pack=0,
)


@pytest.fixture
def token(store: SqlStore) -> int:
    """The token of the study `rte`, held by this process."""
    store.create_study(STUDY)
    return store.claim("rte", this_process(), TTL_S)


# -- processes and threads ------------------------------------------------------------------------


@contextmanager
def contenders(n: int, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that have said `ready` and wait for a line; killed at the end."""
    command = [sys.executable, str(CONTENDER), *arguments]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(n)]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def answers(processes: list[subprocess.Popen[str]]) -> list[Any]:
    """Sets all off and reads what each one answers."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(p.stdout.readline()) for p in processes if p.stdout is not None]


def test_of_4_processes_one_gets_the_lease(store: SqlStore, database_url: str) -> None:
    store.create_study(STUDY)
    with contenders(4, "claim", database_url, "rte", "0") as processes:
        found = answers(processes)
        assert sorted(map(str, found)) == ["1", "held", "held", "held"]
        winner = processes[found.index(1)]
        holder = store.holder("rte")
        assert holder is not None
        assert holder.pid == winner.pid
        with pytest.raises(StudyHeldError, match=str(winner.pid)):
            store.claim("rte", this_process(), TTL_S)

        # Killed and not yet reaped by its parent, it is dead enough.
        winner.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, winner.pid, os.WEXITED | os.WNOWAIT)
        assert store.holder("rte") is None
        assert store.claim("rte", this_process(), TTL_S) == 2


def test_4_processes_get_each_number_once(store: SqlStore, database_url: str, token: int) -> None:
    with contenders(4, "number", database_url, "rte", str(token)) as processes:
        found = answers(processes)
    pairs = [pair for process in found for pair in process]
    assert all(second == first + 1 for first, second in pairs)
    assert sorted(itertools.chain(*pairs)) == list(range(len(pairs) * 2))
    assert [t.number for t in store.trials("rte")] == list(range(len(pairs) * 2))


def test_4_processes_create_the_tables_once(database_url: str) -> None:
    with contenders(4, "create", database_url, "", "0") as processes:
        assert answers(processes) == [0, 0, 0, 0]


def test_threads_share_a_store(store: SqlStore, token: int) -> None:
    def add(_: int) -> list[int]:
        (added,) = store.add_trials("rte", token, [TRIAL])
        return [added.number, len(store.trials("rte"))]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(add, range(20)))
    assert sorted(number for number, _ in found) == list(range(20))
    assert all(seen > number for number, seen in found)


# -- states ---------------------------------------------------------------------------------------

FINAL = [state for state in TrialState if state.final]


class Trials(RuleBasedStateMachine):
    """A study's trials against a model: number -> [state, attempts, causes of closed attempts]."""

    names = itertools.count()

    def __init__(self, store: SqlStore) -> None:
        super().__init__()
        self.store = store
        self.name = f"study-{next(self.names)}"
        store.create_study(replace(STUDY, name=self.name))
        self.token = store.claim(self.name, this_process(), TTL_S)
        self.model: list[tuple[TrialState, int, list[str | None]]] = []

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.model) - 1), label="number")

    @rule(n=st.integers(0, 3))
    def add(self, n: int) -> None:
        added = self.store.add_trials(self.name, self.token, [TRIAL] * n)
        assert [t.number for t in added] == list(range(len(self.model), len(self.model) + n))
        self.model += [(TrialState.WAITING, 0, [])] * n

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        number = self.pick(data)
        state, attempts, causes = self.model[number]
        if state.final:
            with pytest.raises(ValueError, match=state.value):
                self.store.start_trials(self.name, self.token, [number])
            return
        self.store.start_trials(self.name, self.token, [number])
        closed = [None] if state is TrialState.RUNNING else []
        self.model[number] = (TrialState.RUNNING, attempts + 1, causes + closed)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), state=st.sampled_from(FINAL))
    def finish(self, data: st.DataObject, state: TrialState) -> None:
        number = self.pick(data)
        before, attempts, causes = self.model[number]
        self.store.finish_trial(self.name, self.token, number, state, cause=state.value)
        if not before.final:
            closed = [state.value] if before is TrialState.RUNNING else []
            self.model[number] = (state, attempts, causes + closed)

    @rule(passes=st.booleans())
    def lose(self, passes: bool) -> None:
        if passes:
            self.store.release(self.name, self.token)
            self.token = self.store.claim(self.name, this_process(), TTL_S)
        running = [i for i, m in enumerate(self.model) if m[0] is TrialState.RUNNING]
        assert self.store.requeue_trials(self.name, self.token) == running
        for number in running:
            _, attempts, causes = self.model[number]
            self.model[number] = (TrialState.WAITING, attempts, [*causes, "lost"])

    @invariant()
    def agrees(self) -> None:
        found = self.store.trials(self.name)
        assert [(t.number, t.state, t.attempts) for t in found] == [
            (i, state, attempts) for i, (state, attempts, _) in enumerate(self.model)
        ]
        counts = self.store.counts(self.name)
        assert sum(counts.values()) == len(self.model)
        for number, (_, _, causes) in enumerate(self.model):
            kept = self.store.attempts(self.name, number)
            closed = [a["cause"] for a in kept if a["finished_at"] is not None]
            assert closed == causes


def test_trials_move_only_along_the_arrows(store: SqlStore) -> None:
    run_state_machine_as_test(
        lambda: Trials(store),
        settings=settings(max_examples=15, stateful_step_count=12, deadline=None),
    )
