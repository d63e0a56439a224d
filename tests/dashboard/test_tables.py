from collections.abc import Callable

import pytest

from autopeft.study.records import ObjectiveFrame
from dashboard import queries, tables
from dashboard.queries import StudyView


@pytest.fixture
def view(seed: Callable[..., None], url: str) -> StudyView:
    seed("running")
    with queries.opened(url, "running") as study:
        return queries.read_study(study)


def test_every_trial_has_one_row_and_one_role(view: StudyView) -> None:
    roles = dict(zip(view.table["number"], view.table["role"], strict=True))
    assert roles == {
        **{0: "baseline", 1: "baseline", 2: "front", 3: "front", 4: "front", 5: "front"},
        **{6: "dominated", 7: "stopped", 8: "failed", 9: "running", 10: "running", 11: "running"},
    }
    assert list(view.table["number"][view.table["on_front"]]) == [2, 3, 4, 5]


def test_values_are_floats_and_missing_ones_nan(view: StudyView) -> None:
    table = view.table.set_index("number")
    assert table["accuracy"].dtype == "float64"
    assert table["accuracy"][5] == 0.9
    assert table["accuracy"].isna()[[10, 11]].all()
    assert table["train_seconds"][2] == 4.5
    assert table["trainable_params"][10] == 6144


def test_axes_are_objectives_counts_and_profile(view: StudyView) -> None:
    axes = tables.axes(view.table, view.frames)
    assert [axis.name for axis in axes] == [
        "accuracy",
        "trainable_params",
        "head_params",
        "train_seconds",
        "optimizer_steps",
        "learning_rate",
        "pack_lanes",
        "pack_train_seconds",
        "tokens",
    ]
    assert [axis.name for axis in axes if axis.log] == [
        "trainable_params",
        "head_params",
        "learning_rate",
    ]


def test_a_measured_objective_has_a_logarithmic_axis(view: StudyView) -> None:
    seconds = ObjectiveFrame("train_seconds", "min", "log10", 60.0, 2.0)
    found = {axis.name: axis.log for axis in tables.axes(view.table, (*view.frames, seconds))}
    assert found["train_seconds"]
    assert not found["pack_train_seconds"]


def test_no_trials_give_an_empty_table_with_axes(seed: Callable[..., None], url: str) -> None:
    seed("no-trials")
    with queries.opened(url, "no-trials") as study:
        view = queries.read_study(study)
    assert view.table.empty
    assert "accuracy" in [axis.name for axis in tables.axes(view.table, view.frames)]
