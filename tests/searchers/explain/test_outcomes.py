import pytest

from autopeft.searchers.explain.outcomes import outcomes
from autopeft.study.records import ObjectiveFrame, TrialState

FRAMES = (
    ObjectiveFrame("accuracy", "max", "linear", worst=0.2, best=1.0),
    ObjectiveFrame("trainable_params", "min", "log10", worst=768_000, best=768),
)


def _utility(accuracy: float) -> float:
    return (accuracy - 0.2) / 0.8


def test_who_counts(make_trial) -> None:
    trials = [
        make_trial(0, 0.7, baseline="lora-r8"),
        make_trial(1, 0.6),
        make_trial(2, 0.5, state=TrialState.RUNNING, rung=0.33),
        make_trial(3, None, state=TrialState.FAILED, cause="diverged", rung=None),
        make_trial(4, 0.4, state=TrialState.FAILED, cause="out-of-memory", rung=0.33),
        make_trial(5, None, state=TrialState.WAITING, rung=None),
    ]
    found = outcomes(trials, FRAMES, {})
    assert [each.hash for each in found.configurations] == [trials[1].hash, trials[3].hash]
    assert list(found.utilities[:, 0]) == pytest.approx([_utility(0.6), 0.0])
    assert (found.stopped, found.failed) == (0, 1)
    assert found.utilities[1, 1] > 0.0  # its parameters are known, though nothing was measured


def test_a_stopped_trial_is_judged_by_where_others_went_on(make_trial) -> None:
    """Final values are 0.1 + 1.5 times those at the rung; the stopped trial lies below all."""
    early = {n: 0.3 + 0.01 * n for n in range(1, 11)}
    trials = [make_trial(n, 0.1 + 1.5 * value) for n, value in early.items()]
    trials.append(make_trial(11, 0.22, state=TrialState.STOPPED, rung=0.33))
    found = outcomes(trials, FRAMES, {0.33: {**early, 11: 0.22}})
    assert found.utilities[-1, 0] == pytest.approx(_utility(0.1 + 1.5 * 0.22))
    assert found.stopped == 1


def test_with_few_to_compare_it_gains_as_much_as_they_did(make_trial) -> None:
    trials = [make_trial(1, 0.7), make_trial(2, 0.8)]
    trials.append(make_trial(3, 0.4, state=TrialState.STOPPED, rung=0.33))
    found = outcomes(trials, FRAMES, {0.33: {1: 0.5, 2: 0.7, 3: 0.4}})
    assert found.utilities[-1, 0] == pytest.approx(_utility(0.4 + 0.15))


def test_with_none_to_compare_its_value_stands(make_trial) -> None:
    found = outcomes([make_trial(1, 0.4, state=TrialState.STOPPED, rung=0.33)], FRAMES, {})
    assert found.utilities[0, 0] == pytest.approx(_utility(0.4))


def test_a_rung_that_says_nothing_does_not_turn_the_order(make_trial) -> None:
    """Where later values fall with earlier ones, a stopped trial gets their mean, no bonus."""
    early = {n: 0.3 + 0.01 * n for n in range(1, 11)}
    trials = [make_trial(n, 0.9 - value) for n, value in early.items()]
    trials.append(make_trial(11, 0.22, state=TrialState.STOPPED, rung=0.33))
    found = outcomes(trials, FRAMES, {0.33: {**early, 11: 0.22}})
    assert found.utilities[-1, 0] == pytest.approx(found.utilities[:-1, 0].mean())


def test_no_trials_are_no_outcomes() -> None:
    found = outcomes([], FRAMES, {})
    assert found.utilities.shape == (0, 2)
    assert found.configurations == ()
