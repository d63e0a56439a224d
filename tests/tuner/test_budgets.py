"""Budgets of time and steps: what is in flight when they run out, and what deaths cost."""

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer

from autopeft.configuration import Configuration
from autopeft.study.records import StudyState, TrialState
from autopeft.study.sitting import Sitting
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.station import SPEND_S

Lanes = Sequence[tuple[int, Configuration]]
Make = Callable[..., Any]
NAME, STEPS = "toy", 30
RUNGS = {0.4: 12, 1.0: STEPS}
EVALUATION_S, LOADING_S, PROBES_S = 2.0, 5.0, 3.0
"""Of a pack, and of every sitting before its first one, in all and on the device; a step takes a
second."""

IN_FLIGHT = {
    "trials": 0,
    "optimizer_steps": 4 * (STEPS - 12),
    "wall_clock_s": STEPS - 12 + EVALUATION_S + LOADING_S + PROBES_S,
    "train_s": STEPS - 12 + EVALUATION_S + PROBES_S,
}
"""Of the longest pack from rung to rung, and of what is prepared to find out that all is spent."""

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


class World:
    """Sittings on a clock that only work moves; deaths at given steps, which tidy nothing up."""

    def __init__(self, desk: Any, deaths: Sequence[int], patch: pytest.MonkeyPatch) -> None:
        self.desk, self._deaths, self._dead = desk, list(deaths), False
        self.now = self.device_s = 0.0
        self.lane_steps = self.killed = 0
        desk.runner.before_step, desk.runner.diverges = self._before_step, self._evaluated
        clock = SimpleNamespace(monotonic=self._clock, perf_counter=self._clock)
        patch.setattr("autopeft.tuner.station.time", clock)
        spend = Ledger.spend
        patch.setattr(
            Ledger, "spend", lambda *ledger, **spent: self._spend(spend, *ledger, **spent)
        )

    def _clock(self) -> float:
        return self.now

    def _work(self, seconds: float) -> None:
        self.now, self.device_s = self.now + seconds, self.device_s + seconds

    def _before_step(self, lanes: Lanes, _: int) -> None:
        if self._deaths:
            self._deaths[0] -= 1
            if self._deaths[0] == 0:
                self._deaths.pop(0)
                self._dead = True
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
            sitting, self._dead = Sitting(self.desk.stopper, clock=self._clock), False
            self.now += LOADING_S
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


@pytest.mark.slow
@pytest.mark.parametrize("key", BUDGETS)
@searches(20)
def test_budgets_hold_over_more_deaths(make_desk: Make, key: str, data: st.DataObject) -> None:
    check_budget(make_desk, key, data)


@pytest.mark.slow
@pytest.mark.parametrize("key", BUDGETS)
@searches(5)
def test_budgets_hold_on_postgresql(
    make_desk: Make, postgres_server: PostgresServer, key: str, data: st.DataObject
) -> None:
    check_budget(make_desk, key, data, url=postgres_server.new_database())


def check_budget(make_desk: Make, key: str, data: st.DataObject, **where: str) -> None:
    """One budget, and some deaths on the way to its end."""
    budget = data.draw(BUDGETS[key], label=key)
    deaths = data.draw(
        st.lists(st.integers(1, 60), min_size=1, max_size=3), label="calls between deaths"
    )
    desk = make_desk(f"{key}-{next(FRESH)}", **WHOLE | where | {key: budget})
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
    assert spent[key] <= budget + IN_FLIGHT[key]
    # A death may take with it what was not noted yet: some seconds.
    assert world.lane_steps - spent["optimizer_steps"] <= world.killed * 4 * UNNOTED_S
    assert 0.0 <= world.device_s - spent["train_s"] <= world.killed * UNNOTED_S
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
