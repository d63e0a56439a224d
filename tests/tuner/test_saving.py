"""A pack that trains for hours is saved on the way, whatever its rungs are."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from autopeft.configuration import Configuration
from autopeft.execution.states import CohortStates

Lanes = Sequence[tuple[int, Configuration]]
STEPS, LANES, STEP_S = 30, 3, 50.0


class Killed(BaseException):
    """What SIGKILL looks like from inside."""


class Clock:
    """Stands for the `time` of a station: it goes on by the steps alone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    stands = SimpleNamespace(monotonic=made.monotonic, perf_counter=time.perf_counter)
    monkeypatch.setattr("autopeft.tuner.station.time", stands)
    return made


def test_a_running_pack_is_saved_every_ten_minutes_and_goes_on_from_there(
    make_desk: Callable[..., Any], clock: Clock
) -> None:
    desk = make_desk()
    desk.create()
    saved = [clock.now]

    def before_step(lanes: Lanes, at: int) -> None:
        clock.now += STEP_S
        if at == STEPS - 1:
            raise Killed

    desk.runner.before_step = before_step
    desk.runner.before_save = lambda folder: saved.append(clock.now)
    with pytest.raises(Killed):
        desk.tuner().run()
    assert all(after - before <= 600.0 for before, after in pairwise([*saved, clock.now]))
    step = int((saved[-1] - saved[0]) / STEP_S)
    states = CohortStates(desk.folder / "states", 0)
    found = [states.newest(number) for number in range(LANES)]
    assert [lane.step for lane in found if lane] == [step] * LANES
    assert 0 < step < STEPS - 1
    spent = desk.store.study("toy").spent["optimizer_steps"]

    steps: list[int] = []
    desk.runner.before_step = lambda lanes, at: steps.append(at)
    desk.tuner().run()
    assert desk.runner.resumed[0] == step
    assert steps[: STEPS - step] == list(range(step, STEPS))
    rest = LANES * (STEPS - step) + 12 * STEPS
    assert desk.store.study("toy").spent["optimizer_steps"] - spent == rest
