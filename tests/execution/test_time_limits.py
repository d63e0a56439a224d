"""How long a pack may take, and a clock that knows when this process stood still."""

import time

import pytest

from autopeft.execution import time_limits
from autopeft.execution.local import Pace
from autopeft.execution.time_limits import FACTOR, LEAST_S, UNKNOWN_S, Deadline, TimeLimits

TIMED = TimeLimits(step_seconds={1: 1.0, 4: 3.0, 8: 5.0})


@pytest.mark.parametrize(("lanes", "step_s"), [(1, 1.0), (3, 3.0), (8, 5.0), (16, 10.0)])
def test_a_limit_follows_from_calibration(lanes: int, step_s: float) -> None:
    assert TIMED.training_s(lanes, 1000) == FACTOR * step_s * 1000
    assert TIMED.training_s(lanes, 1) == LEAST_S


def test_what_is_given_holds_for_everything() -> None:
    limits = TimeLimits(30.0, {1: 100.0})
    assert (limits.training_s(1, 100), limits.call_s(), limits.at_pace(9.0, 99)) == (30.0,) * 3


def test_without_calibration_the_first_steps_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(TimeLimits(), lanes=4, step=10, until=1010)
    assert pace.deadline.limit_s == UNKNOWN_S
    now += 4.0
    pace.took(12)
    assert pace.deadline.limit_s == FACTOR * 2.0 * 998
    first = pace.deadline
    now += 1.0
    pace.took(900)
    assert pace.deadline is first


def test_time_in_which_this_process_stood_still_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline(10.0)
    now += time_limits.SLEPT_S + 1000.0
    assert not deadline.over()
    for _ in range(10):
        now += 1.0
        assert not deadline.over()
    now += 1.0
    assert deadline.over()
