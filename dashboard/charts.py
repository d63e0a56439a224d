"""Plotly figures as pure functions of data; nothing here knows of Streamlit or a database.

Background, grid and fonts are left open for the page's theme. Every stored text that goes into a
figure is escaped, as Plotly reads a subset of HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autopeft.study.confirmation import Confirmation
from autopeft.study.placement import PlacementMap
from autopeft.study.records import Measurement, ObjectiveFrame, Snapshot
from dashboard import palette, tables, words
from dashboard.tables import Axis

MANY_POINTS = 1500
"""Beyond this, points are drawn with WebGL: SVG grows slow."""

_MARKS: Mapping[str, tuple[str, dict[str, object]]] = {
    tables.DOMINATED: (
        "dominated",
        {"color": palette.DOMINATED, "size": 8, "opacity": 0.85},
    ),
    tables.STOPPED: (
        "stopped early",
        {"color": palette.STOPPED, "size": 8, "symbol": "circle-open", "opacity": 0.8},
    ),
    tables.RUNNING: (
        "in training",
        {"color": palette.RUNNING, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
    ),
    tables.FAILED: (
        "failed",
        {"color": palette.FAILED, "size": 8, "symbol": "x-thin-open", "line": {"width": 2}},
    ),
    tables.BASELINE: (
        "baseline",
        {"color": palette.BASELINE, "size": 12, "symbol": "diamond"},
    ),
    tables.FRONT: ("front", {"color": palette.FRONT, "size": 11}),
}


def front_chart(
    table: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    objectives: Sequence[ObjectiveFrame],
    x_log: bool = False,
    y_log: bool = False,
    selected: int | None = None,
    confirmation: Confirmation | None = None,
) -> go.Figure:
    """All measured trials on two axes, with the front connected.

    The front is connected where both axes are objectives, by steps: what lies beyond a step is
    reached by no trial. A point's `customdata` is `[trial number]`.

    Args:
        table: See `dashboard.tables.trial_table`.
        x: What stands on the horizontal axis.
        y: What stands on the vertical axis.
        objectives: The study's objectives.
        x_log: Whether x has a logarithmic scale; trials at 0 or below are left out then.
        y_log: The same for y.
        selected: Number of a trial to ring.
        confirmation: What other seeds say: means with error bars, where quality stands on an
            axis.
    """
    shown = placed(table, x, y, x_log=x_log, y_log=y_log)
    figure = go.Figure()
    goals = {frame.name: frame.goal for frame in objectives}
    if x.name in goals and y.name in goals and x.name != y.name:
        _connect(figure, shown[shown["on_front"]], x, y, goals)
    for role, (name, marker) in _MARKS.items():
        points = shown[shown["role"] == role]
        if len(points):
            _points(figure, points, x, y, name, marker)
    if confirmation is not None:
        _error_bars(figure, shown, x, y, confirmation)
    ring = shown[shown["number"] == selected]
    if len(ring):
        _ring(figure, ring, x, y)
    figure.update_xaxes(title=x.label, **_scale(shown[x.name], x_log))
    figure.update_yaxes(title=y.label, **_scale(shown[y.name], y_log))
    figure.update_layout(hovermode="closest", clickmode="event+select", dragmode="zoom")
    return framed(figure, 470)


def placed(
    table: pd.DataFrame, x: Axis, y: Axis, *, x_log: bool = False, y_log: bool = False
) -> pd.DataFrame:
    """The rows that have a place on both axes."""
    xs, ys = table[x.name].astype("float64"), table[y.name].astype("float64")
    keep = np.isfinite(xs) & np.isfinite(ys)
    keep &= (xs > 0) if x_log else True
    keep &= (ys > 0) if y_log else True
    return table[keep]


def _scale(values: "pd.Series[float]", log: bool) -> dict[str, Any]:
    """The kind of an axis; a logarithmic one is labelled at 1, 2 and 5 of each decade."""
    if not log or values.empty:
        return {"type": "log" if log else "linear"}
    low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(int(low), int(high) + 1) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [words.compact(tick) for tick in ticks]}


def _connect(
    figure: go.Figure, members: pd.DataFrame, x: Axis, y: Axis, goals: Mapping[str, str]
) -> None:
    """The boundary of what the front reaches: worse in x first, y held until the next step."""
    members = members.sort_values([x.name, y.name])
    figure.add_trace(
        go.Scatter(
            x=members[x.name],
            y=members[y.name],
            mode="lines",
            line={
                "color": palette.FRONT,
                "width": 2,
                "shape": "hv" if goals[x.name] == "min" else "vh",
            },
            opacity=0.6,
            hoverinfo="skip",
            showlegend=False,
        )
    )


def _points(
    figure: go.Figure,
    points: pd.DataFrame,
    x: Axis,
    y: Axis,
    name: str,
    marker: Mapping[str, object],
) -> None:
    many = len(points) > MANY_POINTS
    kind = go.Scattergl if many else go.Scatter
    if many:
        marker = {**marker, "size": 5, "opacity": 0.5}
    edged = [2 if on_front else 0 for on_front in points["on_front"]]
    if name == "baseline":
        marker = {**marker, "line": {"width": edged, "color": palette.FRONT}}
    figure.add_trace(
        kind(
            x=points[x.name],
            y=points[y.name],
            mode="markers",
            name=f"{name} ({len(points)})",
            marker=dict(marker),
            # Without these, Plotly fades every point but the one clicked.
            selected={"marker": {}},
            unselected={"marker": {"opacity": marker.get("opacity", 1.0)}},
            # Lists: of an array in binary form, the browser gives back no list.
            customdata=[[int(number)] for number in points["number"]],
            hovertext=_hover(points, x, y),
            hoverinfo="text",
        )
    )


def _error_bars(
    figure: go.Figure, shown: pd.DataFrame, x: Axis, y: Axis, found: Confirmation
) -> None:
    """Means of several seeds with their 95 % intervals, by split; the other axis stays."""
    quality = found.frame.name
    if (x.name == quality) == (y.name == quality):
        return
    up = y.name == quality
    other = shown.set_index("number")[x.name if up else y.name]
    for split, colour in (("validation", palette.CONFIRMED), ("test", palette.TESTED)):
        seen = [
            (each, own)
            for each in found.trials.values()
            if each.trial in other.index and (own := getattr(each, split)) is not None
        ]
        if not seen:
            continue
        means = [own.over.mean for _, own in seen]
        costs = [float(other[each.trial]) for each, _ in seen]
        reach = [own.over.reach for _, own in seen]
        bars = {"type": "data", "array": reach, "color": colour, "thickness": 1.5}
        figure.add_trace(
            go.Scatter(
                x=costs if up else means,
                y=means if up else costs,
                error_y=bars if up else None,
                error_x=None if up else bars,
                mode="markers",
                name=f"{split}, mean of seeds",
                marker={"color": colour, "size": 9, "symbol": "square"},
                selected={"marker": {}},
                unselected={"marker": {"opacity": 1.0}},
                customdata=[[each.trial] for each, _ in seen],
                hovertext=[
                    f"<b>trial {each.trial}</b> with {own.over.n} seeds on {split}"
                    f"<br>{y.label if up else x.label}: {own.over.shown()}"
                    + ("" if own.difference is None else f"<br>{own.difference.mark.value}")
                    for each, own in seen
                ],
                hoverinfo="text",
            )
        )


def _ring(figure: go.Figure, ring: pd.DataFrame, x: Axis, y: Axis) -> None:
    figure.add_trace(
        go.Scatter(
            x=ring[x.name],
            y=ring[y.name],
            mode="markers",
            name=f"trial {ring['number'].iloc[0]}",
            marker={
                "size": 20,
                "symbol": "circle-open",
                "color": palette.SELECTED,
                "line": {"width": 3},
            },
            hoverinfo="skip",
        )
    )


def _hover(points: pd.DataFrame, x: Axis, y: Axis) -> list[str]:
    columns = [points[name] for name in ("number", "state", "baseline", "summary")]
    rows = zip(*columns, points[x.name], points[y.name], strict=True)
    return [
        f"<b>trial {number}</b> {state}{f', baseline {words.figure_text(base)}' if base else ''}"
        f"<br>{y.label}: {words.metric_value(y.name, value_y)}"
        f"<br>{x.label}: {words.metric_value(x.name, value_x)}"
        f"<br>{words.figure_text(summary).replace('; ', '<br>')}"
        for number, state, base, summary, value_x, value_y in rows
    ]


def hypervolume_chart(snapshots: Sequence[Snapshot]) -> go.Figure:
    """The front's hypervolume over the trials that had ended by then."""
    figure = go.Figure(
        go.Scatter(
            x=[snapshot.trials for snapshot in snapshots],
            y=[snapshot.hypervolume for snapshot in snapshots],
            mode="lines+markers" if len(snapshots) < 60 else "lines",
            line={"color": palette.FRONT, "width": 2, "shape": "hv"},
            marker={"size": 5},
            fill="tozeroy",
            fillcolor="rgba(59,130,246,0.12)",
            customdata=[len(snapshot.front) for snapshot in snapshots],
            hovertemplate=(
                "after %{x} trials<br>hypervolume %{y:.4f}<br>%{customdata} on the front"
                "<extra></extra>"
            ),
        )
    )
    figure.update_xaxes(title="trials ended", rangemode="tozero")
    figure.update_yaxes(title="hypervolume", rangemode="tozero")
    return framed(figure, 260)


def quality_chart(table: pd.DataFrame, quality: ObjectiveFrame) -> go.Figure:
    """The quality of every trial by number, with the best at the full budget so far."""
    figure = go.Figure()
    axis_x, axis_y = Axis("number", "trial", False), Axis.of(quality.name)
    shown = placed(table, axis_x, axis_y)
    for role, (name, marker) in _MARKS.items():
        points = shown[shown["role"] == role]
        if len(points):
            _points(figure, points, axis_x, axis_y, name, marker)
    full = shown[(shown["rung"] == 1.0) & (shown["state"] == "completed")]
    if len(full):
        so_far = (
            full[quality.name].cummax() if quality.goal == "max" else (full[quality.name].cummin())
        )
        figure.add_trace(
            go.Scatter(
                x=full["number"],
                y=so_far,
                mode="lines",
                name="best so far",
                line={"color": palette.FRONT, "width": 2, "shape": "hv"},
                hoverinfo="skip",
            )
        )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title=axis_y.label)
    figure.update_layout(hovermode="closest", clickmode="event+select")
    return framed(figure, 440)


def curve_chart(
    curve: Sequence[Measurement], quality: ObjectiveFrame, rung_steps: Mapping[float, int]
) -> go.Figure:
    """A trial's learning curve: quality on validation above, training loss below.

    Args:
        curve: The trial's measurements.
        quality: The study's quality objective; its worst value is the constant predictor's.
        rung_steps: Steps at which rungs end, by share of the full budget; drawn where reached.
    """
    figure = make_subplots(
        rows=2, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.6, 0.4]
    )
    _line(figure, 1, curve, (quality.name, "validation"), palette.FRONT)
    _line(figure, 2, curve, ("loss", "train"), palette.LOSS)
    figure.add_hline(
        y=quality.worst,
        row=1,
        col=1,
        line={"color": palette.DOMINATED, "dash": "dot", "width": 1},
        annotation={"text": "constant predictor", "font": {"size": 10}},
        annotation_position="bottom right",
    )
    last = max((m.step for m in curve), default=0)
    for step in rung_steps.values():
        if step <= last:
            figure.add_vline(x=step, line={"color": palette.DOMINATED, "dash": "dot", "width": 1})
    figure.update_yaxes(title=words.label(quality.name), row=1, col=1)
    figure.update_yaxes(title="training loss", row=2, col=1)
    figure.update_xaxes(title="optimizer steps", row=2, col=1)
    figure.update_layout(showlegend=False)
    return framed(figure, 360)


def _line(
    figure: go.Figure, row: int, curve: Sequence[Measurement], what: tuple[str, str], color: str
) -> None:
    points = [m for m in curve if (m.metric, m.split) == what]
    figure.add_trace(
        go.Scatter(
            x=[point.step for point in points],
            y=[point.value for point in points],
            mode="lines+markers" if len(points) < 60 else "lines",
            line={"color": color, "width": 2},
            marker={"size": 6},
            hovertemplate=f"{words.label(what[0])}, {what[1]}: %{{y:.4g}}<br>step %{{x}}"
            "<extra></extra>",
        ),
        row=row,
        col=1,
    )


def placement_chart(placement: PlacementMap) -> go.Figure:
    """Where the methods sit: layers x sites, colour and text are the size.

    The colour scale is logarithmic, as sizes are searched in powers of two; nothing is 0, a size
    of 1 is 1, each doubling adds 1. A density counts in thousandths.
    """
    sizes = np.array(placement.matrix(), dtype=np.float64).reshape(
        len(placement.rows), placement.n_layers
    )
    scaled = np.where(sizes < 1.0, sizes / _DENSITY_UNIT, sizes)
    shades = np.where(sizes > 0, 1.0 + np.log2(np.maximum(scaled, 1.0)), 0.0)
    top = max(_SMALLEST_TOP, float(shades.max(initial=0.0)))
    figure = go.Figure(
        go.Heatmap(
            z=shades,
            x=[str(layer) for layer in range(placement.n_layers)],
            y=[words.figure_text(row) for row in placement.rows],
            zmin=0.0,
            zmax=top,
            colorscale=_size_scale(top),
            showscale=False,
            xgap=3,
            ygap=3,
            text=[[_size_text(size) if size else "" for size in row] for row in sizes],
            texttemplate="%{text}" if placement.n_layers <= _MANY_LAYERS else None,
            customdata=[
                [f"size {_size_text(size)}" if size else "nothing" for size in row]
                for row in sizes
            ],
            hovertemplate="%{y}, layer %{x}: %{customdata}<extra></extra>",
        )
    )
    figure.update_xaxes(title="layer", type="category", showgrid=False, zeroline=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, automargin=True)
    return framed(figure, 70 + 34 * max(1, len(placement.rows)))


_DENSITY_UNIT = 1e-3


def _size_text(size: float) -> str:
    """A whole size as it is, a density in two digits."""
    return f"{size:.2g}" if size < 1.0 else f"{size:.0f}"


_MANY_LAYERS = 24
"""Beyond this, a cell is too narrow for its text."""

_SMALLEST_TOP = 7.0
"""The darkest colour stands for a size of 64 or more, so that small placements look small."""


def _size_scale(top: float) -> list[tuple[float, str]]:
    """Nothing is nearly transparent; sizes go from light to dark."""
    first = 1.0 / top
    sized = [(first + share * (1.0 - first), color) for share, color in palette.SIZES]
    edge = first / 2
    return [(0.0, palette.NOTHING), (edge, palette.NOTHING), (edge, palette.SIZES[0][1]), *sized]


def framed(figure: go.Figure, height: int) -> go.Figure:
    """The figure in the house's frame: narrow margins, the legend below."""
    return figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
    )
