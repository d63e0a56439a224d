"""What a cohort's rungs decide by, and that a kill changes none of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from autopeft.configuration import Configuration
from autopeft.execution.base import Result
from autopeft.study.records import TrialState

Lanes = Sequence[tuple[int, Configuration]]
NAME = "toy"
STEPS = {0.2: 6, 0.4: 12, 1.0: 30}


class Killed(BaseException):
    """What SIGKILL looks like from inside."""


def measuring_losses(desk: Any) -> Any:
    """The desk, whose packs measure a loss too, as real ones do."""
    start = desk.runner.start

    def with_loss(result: Result) -> Result:
        share = result.values["accuracy"]
        loss = 2.0 - 2.0 * share + 0.01 * math.sin(97.0 * share)
        return replace(result, values={**result.values, "loss": loss})

    def started(*given: Any, **named: Any) -> Any:
        run = start(*given, **named)
        measure = run.measure
        run.measure = lambda: [with_loss(result) for result in measure()]
        return run

    desk.runner.start = started
    return desk


def outcome(desk: Any) -> list[Any]:
    return [(t.number, t.hash, t.state, t.rung) for t in desk.store.trials(NAME)]


@pytest.mark.parametrize("accuracy_like", [True, False])
def test_a_decision_that_is_taken_again_after_a_kill_is_the_same(
    make_desk: Callable[..., Any], accuracy_like: bool
) -> None:
    changes = {
        "rung_steps": STEPS,
        "proposals": 8,
        "trials": 24,
        "accuracy_like": accuracy_like,
    }
    calm = measuring_losses(make_desk("calm", **changes))
    calm.create()
    calm.tuner().run()
    trials = calm.store.trials(NAME)
    stopped = [t for t in trials if t.state is TrialState.STOPPED]
    assert {0.2} <= {t.rung for t in stopped} <= {0.2, 0.4}
    assert all(t.baseline is None for t in stopped)
    if not accuracy_like:  # the first cohort could not know the noise of its first rung
        first = [t for t in trials if t.pack == 1]
        assert not any(t.rung == 0.2 for t in first)

    # Killed on the way to its second rung, with one of its packs there already, the last cohort
    # decides its first rung once more when it goes on.
    desk = measuring_losses(make_desk("killed", **changes))
    desk.create()
    second = [pack for pack in calm.runner.packs if set(pack) <= _numbers(trials, 3)][-1]

    def before_step(lanes: Lanes, at: int) -> None:
        if [number for number, _ in lanes] == second and at == STEPS[0.4] - 1:
            raise Killed

    desk.runner.before_step = before_step
    with pytest.raises(Killed):
        desk.tuner().run()
    desk.runner.before_step = lambda lanes, at: None
    desk.tuner().run()
    assert outcome(desk) == outcome(calm)


def _numbers(trials: Sequence[Any], cohort: int) -> set[int]:
    return {trial.number for trial in trials if trial.pack == cohort}
