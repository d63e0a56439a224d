import math

import pytest

from autopeft.errors import InputError, NotFoundError
from autopeft.searchers import front as module
from autopeft.searchers.front import (
    Bound,
    best_baseline,
    compare_with_baseline,
    front,
    pick_best,
    pick_knee,
    pick_smallest,
    pick_within,
    utilities,
    utility,
)
from autopeft.study.records import ObjectiveFrame, TrialState


def test_utilities_follow_the_frame(frames) -> None:
    accuracy, params = frames
    assert [utility(accuracy, v) for v in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1])
    assert [utility(params, v) for v in (100_000, 128, 1, 1e9)] == pytest.approx([0, 1, 1, 0])
    middle = math.sqrt(100_000 * 128)
    assert utilities(frames, {"trainable_params": middle}) == pytest.approx((0.0, 0.5))
    assert utility(accuracy, None) == utility(accuracy, math.nan) == 0.0
    loss = ObjectiveFrame("loss", "min", "linear", worst=2.0, best=0.0)
    assert utility(loss, 0.5) == pytest.approx(0.75)


def test_a_frame_without_range_still_has_a_utility() -> None:
    frame = ObjectiveFrame("trainable_params", "min", "log10", worst=64, best=64)
    assert (utility(frame, 64), utility(frame, 65)) == (1.0, 0.0)


@pytest.fixture
def trials(make_trial):
    return [
        make_trial(0, 0.80, 3000, baseline="lora-r8"),
        make_trial(1, 0.85, 4000, baseline="lora-r8-lr1e-3"),
        make_trial(2, 0.60, 500),
        make_trial(3, 0.83, 1000),
        make_trial(4, 0.86, 20000),
        make_trial(5, 0.83, 1000),
        make_trial(6, 0.70, 2000),
        make_trial(7, 0.99, 100, rung=0.33, state=TrialState.STOPPED),
        make_trial(8, 0.98, 100, rung=0.33),
        make_trial(9, None, 100, state=TrialState.FAILED, rung=None, objectives={}),
        make_trial(10, 0.2, 150),
    ]


def numbers(members) -> list[int]:
    return [trial.number for trial in members]


def test_the_front_is_of_full_trials_that_learnt_something(trials, frames) -> None:
    assert numbers(front(trials, frames)) == [2, 3, 1, 4]
    assert numbers(front(trials[::-1], frames)) == [2, 3, 1, 4]
    assert front([], frames) == []


def test_bounds_keep_trials_off_the_front(trials, frames, make_trial) -> None:
    assert numbers(front(trials, frames, [Bound("trainable_params", cap=4000)])) == [2, 3, 1]
    assert numbers(front(trials, frames, [Bound("accuracy", floor=0.84)])) == [1, 4]
    heavy = make_trial(20, 0.9, 90, profile={"probe": {"peak_memory_bytes": 5e9}})
    caps = [Bound("peak_memory_bytes", cap=4e9)]
    assert numbers(front([*trials, heavy], frames, caps)) == [2, 3, 1, 4]


def test_picks_say_why(trials, frames) -> None:
    members = front(trials, frames)
    chosen, why = pick_best(members, frames)
    assert chosen.number == 4
    assert "0.86" in why
    chosen, why = pick_smallest(members, frames)
    assert chosen.number == 2
    assert "500" in why
    chosen, why = pick_knee(members, frames)
    assert chosen.number == 3
    assert "bends" in why


def test_the_knee_of_short_and_hollow_fronts(make_trial, frames) -> None:
    one = [make_trial(0, 0.5, 1000)]
    assert pick_knee(one, frames)[0].number == 0
    two = [make_trial(0, 0.3, 200), make_trial(1, 0.9, 2000)]
    chosen, why = pick_knee(two, frames)
    assert chosen.number == 1
    assert "no bend" in why
    hollow = [make_trial(0, 0.3, 128), make_trial(1, 0.31, 50_000), make_trial(2, 1.0, 60_000)]
    assert "no bend" in pick_knee(hollow, frames)[1]


def test_an_empty_front_offers_nothing(frames) -> None:
    for pick in module.PICKS.values():
        with pytest.raises(NotFoundError, match="front is empty"):
            pick([], frames)
    with pytest.raises(NotFoundError):
        pick_within([], frames, within="1%", prefer="trainable_params")


@pytest.mark.parametrize(
    ("within", "number"), [("0%", 4), ("0.011", 1), ("1.2%", 1), ("3.6%", 3), ("1", 2)]
)
def test_within_trades_quality_for_cost(trials, frames, within: str, number: int) -> None:
    chosen, why = pick_within(
        front(trials, frames), frames, within=within, prefer="trainable_params"
    )
    assert chosen.number == number
    assert within in why


def test_within_of_a_loss(make_trial) -> None:
    frames = (ObjectiveFrame("loss", "min", "linear", worst=2.0, best=0.0),)
    members = [
        make_trial(0, None, 100, objectives={"loss": 0.52}),
        make_trial(1, None, 900, objectives={"loss": 0.50}),
        make_trial(2, None, 10, objectives={"loss": 0.60}),
    ]
    assert pick_within(members, frames, within="5%", prefer="trainable_params")[0].number == 0
    assert pick_best(members, frames)[0].number == 1


def test_within_names_every_fault(trials, frames) -> None:
    with pytest.raises(InputError) as caught:
        pick_within(front(trials, frames), frames, within="a bit", prefer="trainable_param")
    assert len(caught.value.faults) == 2
    assert "did you mean trainable_params" in str(caught.value)


def test_the_best_baseline(trials, frames, make_trial) -> None:
    assert best_baseline(trials, frames).number == 1
    assert best_baseline(trials[2:], frames) is None
    unfinished = make_trial(11, 0.99, 100, baseline="full", rung=0.33)
    assert best_baseline([*trials, unfinished], frames).number == 1


def test_the_comparison_is_honest(trials, frames, make_trial) -> None:
    members = front(trials, frames)
    beats = compare_with_baseline(members, trials, frames)
    assert beats.startswith(
        "trial 4 beats the accuracy of the best baseline lora-r8-lr1e-3 (0.85)"
    )
    assert "5x its trainable parameters; not confirmed yet" in beats

    cheaper = [*trials, make_trial(12, 0.85, 1240)]
    assert compare_with_baseline(front(cheaper, frames), cheaper, frames) == (
        "trial 12 reaches the accuracy of the best baseline lora-r8-lr1e-3 (0.85) "
        "with 0.31x its trainable parameters; not confirmed yet"
    )
    worse = [trial for trial in trials if trial.number != 4]
    told = compare_with_baseline(front(worse, frames), worse, frames)
    assert told.startswith("no trial reaches the accuracy")
    assert "trial 3" in told
    assert compare_with_baseline(members[2:3], trials, frames).startswith("no trial of the search")
    assert "no baseline finished" in compare_with_baseline(members, trials[2:], frames)
