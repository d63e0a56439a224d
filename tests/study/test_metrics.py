from typing import get_args

import pytest

from autopeft.study.metrics import DEFAULT_COST, DEFAULT_QUALITY, METRICS, Kind, metrics_of


def test_every_metric_has_one_kind() -> None:
    kinds = [name for kind in get_args(Kind) for name in metrics_of(kind)]
    assert sorted(kinds) == sorted(METRICS)


@pytest.mark.parametrize("task", list(DEFAULT_QUALITY))
def test_default_objectives_fit_their_task(task: str) -> None:
    quality = METRICS[DEFAULT_QUALITY[task]]
    assert quality.kind == "quality"
    assert quality.fits(task)
    assert not quality.needs_choices
    assert METRICS[DEFAULT_COST].kind == "known"


def test_qualities_are_measured_against_the_constant_predictor() -> None:
    for metric in METRICS.values():
        assert metric.worst_is_constant_predictor == (metric.kind == "quality")
        assert (metric.best is not None) == (metric.kind == "quality")
        assert metric.goal == ("max" if metric.best == 1.0 else "min")


def test_tasks_share_no_quality_but_loss() -> None:
    shared = [
        name
        for name in metrics_of("quality")
        if sum(METRICS[name].fits(task) for task in DEFAULT_QUALITY) != 1
    ]
    assert shared == ["loss"]
    assert [name for name in METRICS if METRICS[name].needs_choices] == ["choice_accuracy"]
