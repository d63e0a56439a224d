import pytest

from autopeft.searchers.explain.reasons import sentences, unspoken
from autopeft.study.records import Origin, TrialState

ACQUIRED = {
    "reason": "expected hypervolume gain",
    "expected_gain": 0.0123,
    "relative_cost": 0.8,
    "gain_per_cost": 0.015375,
    "predicted": {"accuracy": {"mean": 0.71, "sd": 0.03}},
    "known": {"trainable_params": 4096.0},
    "source": "acquisition",
}


def test_a_proposal_of_the_acquisition(make_trial) -> None:
    assert sentences(make_trial(7, 0.68, details=ACQUIRED)) == [
        "proposed because: expected gain 0.0123 hypervolume at 0.8x the mean cost "
        "(0.0154 per mean cost)",
        "predicted accuracy 0.71 +- 0.03, measured 0.68 (1.0 sd below)",
    ]


def test_a_study_of_an_earlier_release_kept_less(make_trial) -> None:
    details = {"reason": "expected hypervolume gain", "expected_gain": 0.0123}
    assert sentences(make_trial(7, 0.68, details=details)) == [
        "proposed because: expected gain 0.0123 hypervolume"
    ]
    assert sentences(make_trial(7, 0.68, details={"expected_gain": None})) == [
        "proposed by the searcher, which kept no reason"
    ]


@pytest.mark.parametrize(
    ("origin", "details", "said"),
    [
        (Origin.INITIAL, {}, "proposed because: space-filling start"),
        (
            Origin.INITIAL,
            {"reason": "space-filling start"},
            "proposed because: space-filling start",
        ),
        (
            Origin.INITIAL,
            {"reason": "known to do well", "source": "He et al., arXiv 2110.04366"},
            "proposed because: known to do well; source: He et al., arXiv 2110.04366",
        ),
        (
            Origin.SEARCHER,
            {"reason": "mutation", "parent": 3},
            "proposed because: mutation of trial 3, which was on the front",
        ),
        (
            Origin.SEARCHER,
            {"reason": "no unseen mutation of the front"},
            "proposed because: no unseen mutation of the front",
        ),
        (Origin.ENQUEUED, {}, "enqueued in the study file (search.enqueue)"),
        (Origin.WARM_START, {}, "taken over from an earlier study"),
        (
            Origin.WARM_START,
            {"reason": "on the front of rte", "source": "study rte, trial 4"},
            "taken over from an earlier study: on the front of rte; source: study rte, trial 4",
        ),
    ],
)
def test_who_proposed_it(make_trial, origin, details, said: str) -> None:
    assert sentences(make_trial(7, 0.6, origin=origin, details=details)) == [said]


def test_a_baseline_was_not_chosen(make_trial) -> None:
    trial = make_trial(0, 0.6, origin=Origin.BASELINE, baseline="lora-r8 lr=0.001")
    assert sentences(trial) == [
        "baseline lora-r8 lr=0.001: run before the search, as what it has to beat"
    ]


@pytest.mark.parametrize(
    ("accuracy", "changes", "came"),
    [
        (0.8, {}, "measured 0.8 (3.0 sd above)"),
        (
            0.4,
            {"state": TrialState.STOPPED, "rung": 0.33},
            "measured 0.4 at 33% of the budget, where it was stopped",
        ),
        (
            0.4,
            {"state": TrialState.RUNNING, "rung": 0.33},
            "measured 0.4 at 33% of the budget so far",
        ),
        (None, {"state": TrialState.WAITING, "rung": None}, "not measured yet"),
        (
            0.2,
            {"state": TrialState.FAILED, "cause": "diverged"},
            "not measured: it failed (diverged)",
        ),
    ],
)
def test_what_came_of_a_prediction(make_trial, accuracy, changes, came: str) -> None:
    found = sentences(make_trial(7, accuracy, details=ACQUIRED, **changes), plus_minus="±")
    assert found[1] == f"predicted accuracy 0.71 ± 0.03, {came}"


def test_what_has_no_sentence_is_left_as_it_is() -> None:
    assert unspoken(ACQUIRED) == {}
    assert unspoken({"reason": "TPE", "parameters": {"lora.rank": 4}}) == {
        "parameters": {"lora.rank": 4}
    }
