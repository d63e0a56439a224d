"""What several seeds show: against SciPy's tests, Holm's own example, and by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from scipy import stats
from trial_records import completed_trial

from autopeft.configuration import Configuration, Group
from autopeft.searchers import confirmed, front
from autopeft.study.confirmation import Confirmation, ConfirmationRun, Mark, Mean
from autopeft.study.records import ObjectiveFrame, Origin, TrialRecord, TrialState

FRAMES = (
    ObjectiveFrame("accuracy", "max", "linear", 0.2, 1.0),
    ObjectiveFrame("trainable_params", "min", "log10", 1e6, 1e2),
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def trial(number: int, quality: float, params: int, baseline: str | None = None) -> TrialRecord:
    configuration = Configuration.of(
        [Group.of("lora", [0], ["query"], rank=number + 1)],
        training={"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0},
    )
    origin = Origin.BASELINE if baseline else Origin.SEARCHER
    objectives = {"accuracy": quality, "trainable_params": float(params)}
    fields = {"objectives": objectives, "trainable_params": params}
    return completed_trial(number, configuration, origin=origin, baseline=baseline, **fields)


TRIALS = [
    trial(0, 0.70, 50_000, "lora-r8"),
    trial(1, 0.60, 500),
    trial(2, 0.75, 5_000),
    trial(3, 0.80, 200_000),
]


def runs(number: int, values: list[float], **more: Any) -> list[ConfirmationRun]:
    return [
        ConfirmationRun(number, seed, TrialState.COMPLETED, {"accuracy": value}, **more)
        for seed, value in enumerate(values, start=1)
    ]


def found(by_trial: dict[int, list[float]], frames: Any = FRAMES) -> Confirmation:
    made = [run for number, values in by_trial.items() for run in runs(number, values)]
    return confirmed.confirmation(made, (), TRIALS, frames)


BASE = [0.70, 0.72, 0.69, 0.71, 0.70]
NEAR = [0.71, 0.71, 0.70, 0.70, 0.72]
FAR = [0.80, 0.81, 0.80, 0.82, 0.79]
LOW = [0.60, 0.62, 0.58, 0.61, 0.61]


def test_means_and_intervals_are_students() -> None:
    mean = confirmed.mean_of(NEAR)
    expected = stats.t.interval(0.95, 4, np.mean(NEAR), stats.sem(NEAR))
    assert (mean.low, mean.high) == pytest.approx(expected)
    assert mean.sd == pytest.approx(np.std(NEAR, ddof=1))
    assert confirmed.mean_of([0.5]) == Mean(0.5, None, None, None, 1)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [confirmed.mean_of(rng.normal(0.7, 0.02, 5).tolist()) for _ in range(2000)]
    share = np.mean([(each.low or 1) < 0.7 < (each.high or 0) for each in intervals])
    assert share == pytest.approx(0.95, abs=0.015)


def test_the_paired_test_is_scipys() -> None:
    differences = np.array(NEAR) - np.array(BASE)
    expected = stats.ttest_rel(NEAR, BASE).pvalue
    assert confirmed.paired_p(differences.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.01, 0.01, 0.01], [0.1]])
def test_differences_that_do_not_vary_are_not_tested(differences: list[float]) -> None:
    assert confirmed.paired_p(differences) is None


def test_holm_by_hand() -> None:
    assert confirmed.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert confirmed.holm([0.6, 0.7]) == [1.0, 1.0]
    assert confirmed.holm([]) == []


def test_holm_keeps_the_chance_of_any_false_mark() -> None:
    rng = np.random.default_rng(1)
    rate = 0.0
    for _ in range(1000):
        base = rng.normal(0.7, 0.02, 5)
        members = {n: rng.normal(0.7, 0.02, 5).tolist() for n in (1, 2, 3)}
        marks = [
            e.validation.difference.mark for e in found({0: base.tolist(), **members}).members
        ]  # type: ignore[union-attr]
        rate += any(mark in (Mark.BETTER, Mark.WORSE) for mark in marks) / 1000
    assert rate < 0.065


def test_marks_say_what_the_seeds_show() -> None:
    result = found({0: BASE, 1: LOW, 2: NEAR, 3: FAR})
    assert result.reference == 0
    marks = {e.trial: e.validation.difference.mark for e in result.members}  # type: ignore[union-attr]
    assert marks == {1: Mark.WORSE, 2: Mark.UNSHOWN, 3: Mark.BETTER}
    assert result.trials[0].validation is not None
    assert result.trials[0].validation.difference is None


def test_where_less_is_better_marks_turn_round() -> None:
    frames = (replace(FRAMES[0], goal="min", worst=1.0, best=0.0), FRAMES[1])
    marks = {
        e.trial: e.validation.difference.mark  # type: ignore[union-attr]
        for e in found({0: BASE, 1: LOW, 3: FAR}, frames).members
    }
    assert marks == {1: Mark.BETTER, 3: Mark.WORSE}


def test_pairs_need_the_same_seed() -> None:
    made = [*runs(0, BASE), *(replace(r, replicate=r.replicate + 3) for r in runs(3, FAR))]
    own = confirmed.confirmation(made, (), TRIALS, FRAMES).trials[3].validation
    assert own is not None
    assert own.over.n == 5
    assert own.difference is not None
    assert own.difference.over.n == 2  # seeds 4 and 5
    assert own.difference.over.mean == pytest.approx(np.mean([0.80 - 0.71, 0.81 - 0.70]))


def test_a_seed_that_diverged_counts_as_the_constant_predictor_and_is_told() -> None:
    gone = ConfirmationRun(3, 5, TrialState.FAILED, cause="diverged", message="nan")
    made = [*runs(0, BASE), *runs(3, FAR[:4]), gone]
    result = confirmed.confirmation(made, (), TRIALS, FRAMES)
    own = result.trials[3]
    assert own.validation is not None
    assert own.validation.by_seed[5] == FRAMES[0].worst
    assert own.diverged == 1
    tested = [replace(run, test=run.values) for run in made if not run.diverged]
    on_test = confirmed.confirmation([*tested, gone], (), TRIALS, FRAMES).trials[3].test
    assert on_test is not None
    assert on_test.by_seed[5] == FRAMES[0].worst, "nor does it leave the test figures"
    assert any("1 of trial 3" in note for note in confirmed.notes(result))


def test_what_the_machine_failed_is_missing_and_told() -> None:
    lost = ConfirmationRun(3, 5, TrialState.FAILED, cause="out-of-memory", message="no room")
    result = confirmed.confirmation([*runs(3, FAR[:4]), lost], (), TRIALS, FRAMES)
    own = result.trials[3]
    assert own.seeds == (1, 2, 3, 4)
    assert own.missing == {5: "out-of-memory: no room"}
    assert any(
        "lacks seeds 5 (out-of-memory: no room)" in note for note in confirmed.notes(result)
    )


def test_seeds_that_were_lost_leave_few_and_that_is_told() -> None:
    """The command asks for five at least; what fails may leave fewer."""
    few = "Fewer than 5 seeds show little."
    lost = ConfirmationRun(3, 5, TrialState.FAILED, cause="lost", message="")
    left = confirmed.confirmation([*runs(0, BASE), *runs(3, FAR[:4]), lost], (), TRIALS, FRAMES)
    assert few in confirmed.notes(left)
    assert few not in confirmed.notes(found({0: BASE, 3: FAR}))
    none = [replace(lost, replicate=seed) for seed in range(1, 6)]
    without = confirmed.confirmation([*runs(0, BASE), *none], (), TRIALS, FRAMES)
    assert without.trials[3].seeds == ()
    assert few not in confirmed.notes(without), "of no seeds nothing is shown at all"


def test_test_figures_take_their_own_family_and_place() -> None:
    made = []
    for number, values in ((0, BASE), (3, FAR), (2, NEAR)):
        made += [
            replace(run, test={"accuracy": run.values["accuracy"] - 0.1} if number != 2 else None)  # type: ignore[operator]
            for run in runs(number, values)
        ]
    result = confirmed.confirmation(made, (), TRIALS, FRAMES)
    own = result.trials[3].test
    assert own is not None
    assert own.over.mean == pytest.approx(np.mean(FAR) - 0.1)
    assert own.difference is not None
    assert own.difference.adjusted == own.difference.p, "one member alone on the test split"
    assert result.trials[2].test is None
    assert "on test: better than that baseline" in confirmed.verdict(result, 3)


def test_the_verdict_takes_up_what_was_confirmed() -> None:
    members = front.front(TRIALS, FRAMES)
    assert front.compare_with_baseline(members, TRIALS, FRAMES).endswith("not confirmed yet")
    result = found({0: BASE, 2: NEAR})
    sentence = front.compare_with_baseline(
        members, TRIALS, FRAMES, beyond=lambda n: confirmed.verdict(result, n)
    )
    assert sentence.startswith("trial 2 reaches the accuracy of the best baseline lora-r8")
    assert "over 5 seeds on validation: no significant difference from that baseline" in sentence
    assert "+0.0040 (" in sentence
    assert confirmed.verdict(result, 3) == "not confirmed yet"


def test_a_spread_has_the_best_the_knee_and_the_smallest_first() -> None:
    members = [
        trial(n, quality, params)
        for n, (quality, params) in enumerate(
            [(0.5, 200), (0.55, 400), (0.74, 900), (0.76, 9_000), (0.77, 40_000), (0.8, 300_000)]
        )
    ]
    numbers = {
        count: [each.number for each in confirmed.spread(members, FRAMES, count)]
        for count in (1, 2, 3, 4, 9)
    }
    assert numbers[1] == [5]
    assert numbers[2] == [2, 5]
    assert numbers[3] == [0, 2, 5]
    assert set(numbers[4]) > set(numbers[3])
    assert numbers[9] == [0, 1, 2, 3, 4, 5]
    assert confirmed.spread([trial(0, 0.7, 500, "lora-r8")], FRAMES, 3) == []


def test_the_front_redrawn_leaves_out_what_the_means_beat() -> None:
    result = found({0: BASE, 1: LOW, 2: NEAR, 3: [value - 0.2 for value in FAR]})
    assert confirmed.redrawn(result, TRIALS, FRAMES) == [1, 2]
