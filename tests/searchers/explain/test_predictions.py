import math

import pytest

from autopeft.searchers.explain.predictions import Predictions, predicted, predictions
from autopeft.study.records import TrialRecord, TrialState


def _details(mean: object, sd: object = 0.1, metric: str = "accuracy") -> dict[str, object]:
    return {"predicted": {metric: {"mean": mean, "sd": sd}}}


@pytest.fixture
def trials(make_trial) -> list[TrialRecord]:
    """Four predictions that were measured in full, off by 0, 0.5, 1.5 and 3 sd; the rest not."""
    return [
        make_trial(0, 0.5),
        make_trial(1, 0.50, details=_details(0.50)),
        make_trial(2, 0.65, details=_details(0.60)),
        make_trial(3, 0.55, details=_details(0.70)),
        make_trial(4, 1.00, details=_details(0.70)),
        make_trial(5, 0.30, details=_details(0.70), state=TrialState.STOPPED, rung=0.33),
        make_trial(6, None, details=_details(0.70), state=TrialState.RUNNING, rung=None),
        make_trial(7, 0.2, details=_details(0.7), state=TrialState.FAILED, cause="diverged"),
    ]


def test_only_trials_of_the_full_budget_are_compared(trials: list[TrialRecord]) -> None:
    (found,) = predictions(trials)
    assert (found.metric, found.proposed) == ("accuracy", 7)
    assert [pair.trial for pair in found.pairs] == [1, 2, 3, 4]
    assert found.pairs[2].error == pytest.approx(-0.15)


def test_calibration(trials: list[TrialRecord]) -> None:
    (found,) = predictions(trials)
    assert found.share_within(1) == 0.5
    assert found.share_within(2) == 0.75
    assert found.rmse == pytest.approx(math.sqrt((0.05**2 + 0.15**2 + 0.3**2) / 4))
    assert found.bias == pytest.approx(0.2 / 4)
    # Ranks 1, 2, 3.5, 3.5 against 1, 3, 2, 4.
    assert found.rank_correlation == pytest.approx(0.6325, abs=1e-4)


def test_calibration_in_sentences(trials: list[TrialRecord]) -> None:
    (found,) = predictions(trials)
    assert found.sentences() == [
        "accuracy was predicted for 7 trials; 4 of them completed the full budget and count",
        "measured values: 50% within 1 sd (68% would be), 75% within 2 sd (95% would be)",
        "RMSE 0.1696, measured less predicted on average +0.05",
        "rank correlation 0.63 between predicted and measured",
    ]


def test_nothing_completed_is_said(make_trial) -> None:
    running = make_trial(1, None, details=_details(0.5), state=TrialState.RUNNING, rung=None)
    (found,) = predictions([running])
    assert found.sentences() == [
        "accuracy was predicted for 1 trial; none of them has completed the full budget"
    ]
    plain = found.to_dict()
    assert (plain["completed"], plain["rmse"], plain["within_1_sd"]) == (0, None, None)


def test_every_metric_has_its_own(make_trial) -> None:
    both = {"predicted": {"accuracy": {"mean": 0.5, "sd": 0.1}, "seconds": {"mean": 20.0}}}
    trial = make_trial(1, 0.4, details=both, objectives={"accuracy": 0.4, "seconds": 25.0})
    accuracy, seconds = predictions([trial])
    assert (accuracy.metric, seconds.metric) == ("accuracy", "seconds")
    assert (seconds.rmse, seconds.share_within(1)) == (5.0, None)
    assert accuracy.rank_correlation is None


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"predicted": None},
        {"predicted": 0.7},
        {"predicted": {"accuracy": 0.7}},
        {"predicted": {"accuracy": {"sd": 0.1}}},
        {"predicted": {"accuracy": {"mean": None, "sd": None}}},
        {"predicted": {"accuracy": {"mean": "high"}}},
        {"predicted": {"accuracy": {"mean": True}}},
    ],
)
def test_details_of_any_kind_are_read(make_trial, details: dict[str, object]) -> None:
    assert predicted(make_trial(1, 0.5, details=details)) == {}
    assert predictions([make_trial(1, 0.5, details=details)]) == []


def test_the_json_shape(trials: list[TrialRecord]) -> None:
    (found,) = predictions(trials)
    plain = found.to_dict()
    assert plain["pairs"][1] == {"trial": 2, "mean": 0.6, "sd": 0.1, "measured": 0.65}
    assert isinstance(found, Predictions)
    assert set(plain) == {
        "metric", "proposed", "completed", "within_1_sd", "within_2_sd", "rank_correlation",
        "rmse", "bias", "pairs",
    }  # fmt: skip
