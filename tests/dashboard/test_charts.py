from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from autopeft.configuration import Configuration, Group
from autopeft.study.placement import PlacementMap, placement_map
from autopeft.study.records import Measurement, ObjectiveFrame, Snapshot
from dashboard import charts, queries
from dashboard.queries import StudyView
from dashboard.tables import Axis

PARAMS, ACCURACY = Axis.of("trainable_params"), Axis.of("accuracy")
QUALITY = ObjectiveFrame("accuracy", "max", "linear", 0.25, 1.0)


@pytest.fixture
def view(seed: Callable[..., None], url: str) -> StudyView:
    seed("running")
    with queries.opened(url, "running") as study:
        return queries.read_study(study)


def _traces(figure: charts.go.Figure) -> dict[str, charts.go.Scatter]:
    return {trace.name: trace for trace in figure.data if trace.name}


def test_every_role_has_its_own_mark(view: StudyView) -> None:
    figure = charts.front_chart(view.table, x=PARAMS, y=ACCURACY, objectives=view.frames)
    traces = _traces(figure)
    assert list(traces) == [
        "dominated (1)",
        "stopped early (1)",
        "in training (1)",
        "failed (1)",
        "baseline (2)",
        "front (4)",
    ]
    looks = {(trace.marker.symbol, trace.marker.color) for trace in traces.values()}
    assert len(looks) == 6


def test_points_carry_trial_numbers_and_values(view: StudyView) -> None:
    figure = charts.front_chart(view.table, x=PARAMS, y=ACCURACY, objectives=view.frames)
    front = _traces(figure)["front (4)"]
    assert front.to_plotly_json()["customdata"] == [[2], [3], [4], [5]]
    assert list(front.y) == [0.55, 0.71, 0.8, 0.9]
    assert "trial 5" in front.hovertext[3]
    assert "accuracy: 0.9000" in front.hovertext[3]
    assert "lora rank 32 on query, value" in front.hovertext[3]


def test_the_front_is_connected_by_steps_between_objectives_only(view: StudyView) -> None:
    figure = charts.front_chart(view.table, x=PARAMS, y=ACCURACY, objectives=view.frames)
    (line,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert line.line.shape == "hv"
    assert list(line.x) == sorted(line.x)
    other = charts.front_chart(
        view.table, x=Axis.of("learning_rate"), y=ACCURACY, objectives=view.frames
    )
    assert not [trace for trace in other.data if trace.mode == "lines"]


def test_the_selected_trial_is_ringed(view: StudyView) -> None:
    figure = charts.front_chart(
        view.table, x=PARAMS, y=ACCURACY, objectives=view.frames, selected=4
    )
    ring = _traces(figure)["trial 4"]
    assert (list(ring.x), list(ring.y)) == ([18432.0], [0.8])


def test_log_axes_leave_out_what_has_no_logarithm() -> None:
    table = pd.DataFrame(
        {
            "number": [0, 1, 2, 3],
            "trainable_params": [0.0, 10.0, np.nan, 1000.0],
            "accuracy": [0.5, 0.6, 0.7, np.nan],
        }
    )
    assert list(charts.placed(table, PARAMS, ACCURACY)["number"]) == [0, 1]
    assert list(charts.placed(table, PARAMS, ACCURACY, x_log=True)["number"]) == [1]


def test_log_axes_are_labelled_in_short_numbers(view: StudyView) -> None:
    figure = charts.front_chart(
        view.table, x=PARAMS, y=ACCURACY, objectives=view.frames, x_log=True
    )
    assert figure.layout.xaxis.type == "log"
    assert "10k" in figure.layout.xaxis.ticktext
    assert figure.layout.yaxis.type == "linear"


def test_a_table_without_trials_gives_an_empty_plot(view: StudyView) -> None:
    figure = charts.front_chart(
        view.table.iloc[:0], x=PARAMS, y=ACCURACY, objectives=view.frames, x_log=True
    )
    assert not _traces(figure)


def test_stored_text_is_escaped(view: StudyView) -> None:
    table = view.table.assign(baseline="<a href='x'>", summary="<b>bold</b>")
    figure = charts.front_chart(table, x=PARAMS, y=ACCURACY, objectives=view.frames)
    text = _traces(figure)["front (4)"].hovertext[0]
    assert "<a" not in text
    assert "&lt;b&gt;bold" in text


def test_many_points_are_drawn_with_webgl(view: StudyView) -> None:
    table = pd.concat([view.table] * (charts.MANY_POINTS // 4 + 1), ignore_index=True)
    figure = charts.front_chart(table, x=PARAMS, y=ACCURACY, objectives=view.frames)
    kinds = {trace.name.split(" ")[0]: trace.type for trace in _traces(figure).values()}
    assert kinds["front"] == "scattergl"
    assert kinds["failed"] == "scatter"


def test_hypervolume_over_trials() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    snapshots = [Snapshot(0, 1, (0,), 0.1, at), Snapshot(1, 3, (0, 2), 0.4, at)]
    (line,) = charts.hypervolume_chart(snapshots).data
    assert (list(line.x), list(line.y), list(line.customdata)) == ([1, 3], [0.1, 0.4], [1, 2])


def test_the_best_so_far_counts_full_budgets_only(view: StudyView) -> None:
    best = _traces(charts.quality_chart(view.table, QUALITY))["best so far"]
    assert list(best.x) == [0, 1, 2, 3, 4, 5, 6]
    assert list(best.y) == [0.41, 0.78, 0.78, 0.78, 0.8, 0.9, 0.9]


def test_the_curve_has_quality_above_loss() -> None:
    curve = [
        Measurement(10, "accuracy", "validation", 0.4),
        Measurement(10, "loss", "train", 1.2),
        Measurement(10, "loss", "validation", 9.0),
        Measurement(20, "accuracy", "validation", None),
        Measurement(20, "loss", "train", 1.0),
    ]
    figure = charts.curve_chart(curve, QUALITY, {0.5: 10, 1.0: 40})
    quality, loss = figure.data
    assert (list(quality.x), list(quality.y), quality.yaxis) == ([10, 20], [0.4, None], "y")
    assert (list(loss.x), list(loss.y), loss.yaxis) == ([10, 20], [1.2, 1.0], "y2")
    upright = {shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1}
    assert upright == {10}


def test_the_placement_shows_sizes_as_text_and_doubling_as_colour() -> None:
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
    groups = [
        Group.of("lora", [0], ["query"], rank=1),
        Group.of("serial_adapter", [2], size=64),
    ]
    placement = placement_map(Configuration.of(groups, training=training), 3)
    (heat,) = charts.placement_chart(placement).data
    assert list(heat.y) == ["lora query", "serial_adapter"]
    assert [list(row) for row in heat.text] == [["1", "", ""], ["", "", "64"]]
    assert np.asarray(heat.z).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 7.0]]


def test_densities_are_shares() -> None:
    (heat,) = charts.placement_chart(
        PlacementMap(("sparse up",), 2, {("sparse up", 1): 0.004})
    ).data
    assert [list(row) for row in heat.text] == [["", "0.004"]]
    assert np.asarray(heat.z).tolist() == [[0.0, 3.0]]


def test_an_empty_placement_draws_nothing() -> None:
    (heat,) = charts.placement_chart(PlacementMap((), 4, {})).data
    assert not len(heat.y)


@pytest.fixture
def confirmed_view(seed: Callable[..., None], url: str) -> StudyView:
    seed("confirmed")
    with queries.opened(url, "confirmed") as study:
        return queries.read_study(study)


def test_means_of_seeds_have_error_bars(confirmed_view: StudyView) -> None:
    view, found = confirmed_view, confirmed_view.confirmation
    figure = charts.front_chart(
        view.table, x=PARAMS, y=ACCURACY, objectives=view.frames, confirmation=found
    )
    for split in ("validation", "test"):
        points = _traces(figure)[f"{split}, mean of seeds"]
        assert points.to_plotly_json()["customdata"] == [[1], [4], [5]]
        for place, number in enumerate((1, 4, 5)):
            seen = getattr(found.trials[number], split)
            assert points.y[place] == seen.over.mean
            assert points.x[place] == view.trials[number].trainable_params
            reach = points.error_y.array[place]
            ends = (seen.over.mean - reach, seen.over.mean + reach)
            assert ends == pytest.approx((seen.over.low, seen.over.high))
        assert "better" in points.hovertext[2]


def test_error_bars_follow_quality_to_the_other_axis_or_stay_away(
    confirmed_view: StudyView,
) -> None:
    view, found = confirmed_view, confirmed_view.confirmation
    turned = charts.front_chart(
        view.table, x=ACCURACY, y=PARAMS, objectives=view.frames, confirmation=found
    )
    points = _traces(turned)["validation, mean of seeds"]
    assert points.error_x.array is not None
    assert points.error_y.array is None
    other = charts.front_chart(
        view.table,
        x=PARAMS,
        y=Axis.of("learning_rate"),
        objectives=view.frames,
        confirmation=found,
    )
    assert not [name for name in _traces(other) if "mean of seeds" in name]
