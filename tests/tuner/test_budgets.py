"""Budgets of time and steps: what is in flight when they run out, and what deaths cost."""

import itertools
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer

from autopeft.configuration import Configuration
from autopeft.errors import TrialError
from autopeft.study.records import StudyState, TrialState
from autopeft.study.sitting import Sitting
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.packs import PackTraining
from autopeft.tuner.station import SPEND_S

Lanes = Sequence[tuple[int, Configuration]]
Make = Callable[..., Any]
NAME, STEPS = "toy", 30
RUNGS = {0.4: 12, 1.0: STEPS}
EVALUATION_S, LOADING_S, PROBES_S = 2.0, 5.0, 3.0
"""Of a pack, and of every sitting before its first one, in all and on the device; a step takes a
second."""


def in_flight(runners: int) -> dict[str, float]:
    """The longest pack from rung to rung on each runner; what is prepared to find all spent."""
    return {
        "trials": 0,
        "optimizer_steps": runners * 4 * (STEPS - 12),
        "wall_clock_s": STEPS - 12 + EVALUATION_S + LOADING_S + PROBES_S,
        "train_s": runners * (STEPS - 12 + EVALUATION_S) + PROBES_S,
    }


UNNOTED_S = SPEND_S + 1.0
WHOLE = {"proposals": 8, "rung_steps": RUNGS, "trials": 12}
FRESH = itertools.count()


class Killed(BaseException):
    """What SIGKILL looks like from inside."""


def test_a_cohort_waits_where_its_budget_ends_and_goes_on_with_a_larger_one(
    make_desk: Make, calm: Any
) -> None:
    desk = make_desk("steps", **(calm.changes | {"optimizer_steps": 3 * STEPS + 60}))
    desk.create()
    desk.tuner().run()
    study = desk.store.study(NAME)
    assert study.state is StudyState.FINISHED
    assert study.facts["ended"]["reason"] == "optimizer_steps"
    # Baselines, then two packs to the first rung: the second one was in flight.
    assert study.spent["optimizer_steps"] == 3 * STEPS + 2 * 4 * 12
    counts = desk.store.counts(NAME)
    assert (counts[TrialState.COMPLETED], counts[TrialState.RUNNING]) == (3, 0)
    assert "trials that were begun wait" in study.facts["ended"]["text"]
    attempts = desk.store.attempts(NAME, 3)
    assert [each["cause"] for each in attempts] == ["budget"]
    desk.changes["optimizer_steps"] = None
    desk.tuner().run()
    found = [(t.number, t.hash, t.state, t.objectives) for t in desk.store.trials(NAME)]
    expected = [(t.number, t.hash, t.state, t.objectives) for t in calm.store.trials(NAME)]
    assert found == expected


def test_every_runner_ends_the_pack_that_it_had_begun(make_desk: Make, calm: Any) -> None:
    """Both packs of a cohort begin while a step is left; the next rung has none."""
    desk = make_desk("two", **(calm.changes | {"runners": 2, "optimizer_steps": 3 * STEPS + 1}))
    both = threading.Barrier(2)

    def before_step(lanes: Lanes, step: int) -> None:
        if len(lanes) == 4 and step == 0:
            both.wait(timeout=60)

    for runner in desk.runners:
        runner.before_step = before_step
    desk.create()
    desk.tuner().run()
    study = desk.store.study(NAME)
    assert study.facts["ended"]["reason"] == "optimizer_steps"
    assert study.spent["optimizer_steps"] == 3 * STEPS + 2 * 4 * 12
    assert all(any(len(pack) == 4 for pack in runner.packs) for runner in desk.runners)


@pytest.mark.parametrize("runners", [1, 2])
@pytest.mark.parametrize("cause", ["lost", "timeout", "error", "out-of-memory"])
def test_what_fails_in_flight_is_tried_again_with_a_larger_budget_only(
    make_desk: Make, cause: str, runners: int
) -> None:
    """A pack of four that fails at its last step has spent all: neither it nor a half goes on."""
    desk = make_desk(trials=4, optimizer_steps=3 * STEPS + 1, runners=runners, rung_steps=RUNGS)
    failing = True

    def fail(lanes: Lanes, step: int) -> None:
        if failing and step == 11 and 3 in [number for number, _ in lanes]:
            raise TrialError("so it is", cause=cause)

    for runner in desk.runners:
        runner.before_step = fail
    desk.create()
    desk.tuner().run()
    study = desk.store.study(NAME)
    assert study.facts["ended"]["reason"] == "optimizer_steps"
    assert study.spent["optimizer_steps"] <= 3 * STEPS + 1 + 4 * 12
    assert cause in [each["cause"] for each in desk.store.attempts(NAME, 3)]
    failing = False
    desk.changes["optimizer_steps"] = None
    desk.tuner().run()
    assert {trial.state for trial in desk.store.trials(NAME)[3:]} <= {
        TrialState.COMPLETED,
        TrialState.STOPPED,
    }


class World:
    """Sittings on a clock that only work moves; deaths at given steps, which tidy nothing up.

    Whoever drives a runner has a clock of its own, which begins with its rung; what is late on any
    of them is the time on the wall. A death is the death of all: it lets nobody take a step more.
    """

    def __init__(self, desk: Any, deaths: Sequence[int], patch: pytest.MonkeyPatch) -> None:
        self.desk, self._deaths, self._dead = desk, list(deaths), False
        self._clocks: dict[int, float] = {}
        self._began = self.device_s = 0.0
        self.lane_steps = self.killed = 0
        self._lock = threading.Lock()
        for runner in desk.runners:
            runner.before_step, runner.diverges = self._before_step, self._evaluated
        clock = SimpleNamespace(monotonic=self._own_clock, perf_counter=self._own_clock)
        patch.setattr("autopeft.tuner.station.time", clock)
        run = PackTraining.run
        patch.setattr(PackTraining, "run", lambda *given: self._rung(run, *given))
        spend = Ledger.spend
        patch.setattr(
            Ledger, "spend", lambda *ledger, **spent: self._spend(spend, *ledger, **spent)
        )

    @property
    def now(self) -> float:
        return max([self._began, *self._clocks.copy().values()])

    def _own_clock(self) -> float:
        return self._clocks.get(threading.get_ident(), self._began)

    def _rung(self, run: Callable[..., bool], *given: Any) -> bool:
        """All begin together with what has happened until then."""
        self._wait(0.0)
        return run(*given)

    def _wait(self, seconds: float) -> None:
        """While nobody trains."""
        self._began, self._clocks = self.now + seconds, {}

    def _work(self, seconds: float) -> None:
        with self._lock:
            self._clocks[threading.get_ident()] = self._own_clock() + seconds
            self.device_s += seconds

    def _before_step(self, lanes: Lanes, _: int) -> None:
        with self._lock:
            if self._deaths and not self._dead:
                self._deaths[0] -= 1
                if self._deaths[0] == 0:
                    self._deaths.pop(0)
                    self._dead = True
            if self._dead:
                raise Killed
            self.lane_steps += len(lanes)
        self._work(1.0)

    def _evaluated(self, _: Configuration) -> bool:
        self._work(EVALUATION_S / 8)  # asked twice for each of four lanes
        return False

    def _spend(self, spend: Callable[..., None], ledger: Ledger, **spent: float) -> None:
        if self._dead:
            raise Killed
        spend(ledger, **spent)

    def to_the_end(self) -> None:
        """Sit down again after every death."""
        while self.desk.store.study(NAME).state is not StudyState.FINISHED:
            sitting, self._dead = Sitting(self.desk.stopper, clock=lambda: self.now), False
            self._wait(LOADING_S)
            with sitting.on_device():
                self._work(PROBES_S)
            try:
                self.desk.tuner(sitting).run()
            except Killed:
                self.killed += 1


BUDGETS = {
    "trials": st.integers(1, 12),
    "optimizer_steps": st.integers(60, 500),
    "wall_clock_s": st.integers(20, 200),
    "train_s": st.integers(20, 150),
}


def searches(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many budgets and deaths, drawn by Hypothesis."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        drawn = given(data=st.data())(test)
        found: Callable[..., None] = settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )(drawn)
        return found

    return decorate


@pytest.mark.parametrize("key", BUDGETS)
@searches(3)
def test_a_budget_is_never_passed_by_more_than_what_was_in_flight(
    make_desk: Make, key: str, data: st.DataObject
) -> None:
    check_budget(make_desk, key, data)


@pytest.mark.parametrize("key", BUDGETS)
@searches(2)
def test_two_runners_have_a_pack_each_in_flight(
    make_desk: Make, key: str, data: st.DataObject
) -> None:
    check_budget(make_desk, key, data, runners=2)


@pytest.mark.slow
@pytest.mark.parametrize("runners", [1, 2])
@pytest.mark.parametrize("key", BUDGETS)
@searches(20)
def test_budgets_hold_over_more_deaths(
    make_desk: Make, key: str, runners: int, data: st.DataObject
) -> None:
    check_budget(make_desk, key, data, runners=runners)


@pytest.mark.slow
@pytest.mark.parametrize("runners", [1, 2])
@pytest.mark.parametrize("key", BUDGETS)
@searches(5)
def test_budgets_hold_on_postgresql(
    make_desk: Make, postgres_server: PostgresServer, key: str, runners: int, data: st.DataObject
) -> None:
    check_budget(make_desk, key, data, runners=runners, url=postgres_server.new_database())


def check_budget(
    make_desk: Make, key: str, data: st.DataObject, *, runners: int = 1, **where: str
) -> None:
    """One budget, and some deaths on the way to its end."""
    budget = data.draw(BUDGETS[key], label=key)
    deaths = data.draw(
        st.lists(st.integers(1, 60), min_size=1, max_size=3), label="calls between deaths"
    )
    desk = make_desk(f"{key}-{next(FRESH)}", **WHOLE | where | {key: budget, "runners": runners})
    desk.create()
    with pytest.MonkeyPatch.context() as patch:
        world = World(desk, deaths, patch)
        world.to_the_end()
    study, trials = desk.store.study(NAME), desk.store.trials(NAME)
    spent = {
        "trials": sum(trial.baseline is None for trial in trials),
        "optimizer_steps": study.spent["optimizer_steps"],
        "wall_clock_s": study.spent["wall_seconds"],
        "train_s": study.device_seconds,
    }
    assert spent[key] <= budget + in_flight(runners)[key]
    # A death may take with it what was not noted yet: some seconds on each runner.
    lost = world.killed * runners * UNNOTED_S
    assert world.lane_steps - spent["optimizer_steps"] <= 4 * lost
    assert 0.0 <= world.device_s - spent["train_s"] <= lost
    assert 0.0 <= world.now - spent["wall_clock_s"] <= world.killed * UNNOTED_S
    if not all(trial.state.final for trial in trials):
        assert spent[key] >= budget
    desk.store.close()


def test_hours_of_devices_are_those_of_training_and_evaluation(make_desk: Make) -> None:
    desk = make_desk(train_s=1e-9)
    desk.create()
    desk.tuner().run()
    study = desk.store.study(NAME)
    assert study.facts["ended"]["reason"] == "gpu_hours"
    assert [t.state for t in desk.store.trials(NAME)] == [TrialState.COMPLETED] * 3
    spent = study.spent
    assert study.device_seconds == pytest.approx(
        spent["train_seconds"] + spent["evaluation_seconds"]
    )
