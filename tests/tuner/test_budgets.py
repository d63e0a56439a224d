"""Budgets of time and steps: what is in flight when they run out, and what deaths cost."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.configuration import Configuration
from autopeft.study.records import StudyState, TrialState

Lanes = Sequence[tuple[int, Configuration]]
Make = Callable[..., Any]
NAME, STEPS = "toy", 30
RUNGS = {0.4: 12, 1.0: STEPS}
IN_FLIGHT = 4 * (STEPS - 12)
"""Steps of the longest pack from rung to rung."""


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


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_steps_are_never_passed_by_more_than_what_was_in_flight(
    make_desk: Make, data: st.DataObject
) -> None:
    budget = data.draw(st.integers(60, 500), label="budget")
    deaths = data.draw(st.lists(st.integers(1, 60), max_size=3), label="calls between deaths")
    name = f"b{budget}-{'-'.join(map(str, deaths))}"
    desk = make_desk(name, proposals=8, rung_steps=RUNGS, trials=12, optimizer_steps=budget)
    if not desk.store.studies():
        desk.create()
    taken = 0

    def before_step(lanes: Lanes, at: int) -> None:
        nonlocal taken
        if deaths:
            deaths[0] -= 1
            if deaths[0] == 0:
                deaths.pop(0)
                raise Killed
        taken += len(lanes)

    desk.runner.before_step = before_step
    killed = 0
    while desk.store.study(NAME).state is not StudyState.FINISHED:
        try:
            desk.tuner().run()
        except Killed:
            killed += 1
    spent = desk.store.study(NAME).spent["optimizer_steps"]
    assert spent < budget + IN_FLIGHT
    # A death may take with it what was not noted yet: no more than what was in flight.
    assert taken <= spent + killed * IN_FLIGHT
    if all(t.state.final for t in desk.store.trials(NAME)):
        assert len(desk.store.trials(NAME)) <= 15
    else:
        assert spent >= budget
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
