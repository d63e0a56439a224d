"""The front as an interactive figure: what `autopeft front --save` writes.

Pure plotly over the study's records, without a dashboard; imported when a figure is made.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from autopeft.study.confirmation import Confirmation
from autopeft.study.records import ObjectiveFrame, TrialRecord, TrialState

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_GREY, _BLUE, _ORANGE, _GREEN = "#9ca3af", "#2563eb", "#ea580c", "#059669"


def front_figure(
    study: str,
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    frames: Sequence[ObjectiveFrame],
    confirmation: Confirmation | None = None,
    redrawn: Sequence[int] = (),
) -> "Figure":
    """Quality over the first cost: dominated trials grey, the front joined, baselines marked.

    Args:
        study: The study's name.
        trials: Its trials; only those trained at the full budget are drawn.
        front: Those on the front.
        frames: The objectives, quality first; a cost on a log10 scale gets a log axis.
        confirmation: What other seeds said: drawn as means with their 95 % intervals.
        redrawn: The trials whose validation means no other confirmed one beats: joined.
    """
    from plotly import graph_objects

    quality, cost = frames[0], frames[1]
    members = {trial.number for trial in front}
    full = [trial for trial in trials if _drawable(trial, quality.name, cost.name)]
    beaten = [t for t in full if t.number not in members and t.baseline is None]
    ordered = sorted(
        (t for t in full if t.number in members), key=lambda t: t.objectives[cost.name] or 0.0
    )
    baselines = [trial for trial in full if trial.baseline is not None]
    figure = graph_objects.Figure()
    for name, shown, look in (
        ("dominated", beaten, {"mode": "markers", "marker": {"color": _GREY, "size": 7}}),
        (
            "front",
            ordered,
            {
                "mode": "lines+markers",
                # Between two points the front offers the cheaper one: it steps at the next.
                "line": {"color": _BLUE, "shape": "hv"},
                "marker": {"color": _BLUE, "size": 10},
            },
        ),
        (
            "baseline",
            baselines,
            {"mode": "markers", "marker": {"color": _ORANGE, "size": 11, "symbol": "x"}},
        ),
    ):
        if shown:
            figure.add_trace(_trace(graph_objects, name, shown, (cost.name, quality.name), look))
    if confirmation is not None:
        for trace in _confirmed(graph_objects, confirmation, full, frames, redrawn):
            figure.add_trace(trace)
    figure.update_layout(
        title={"text": f"{study}: {quality.name} over {cost.name}"},
        template="plotly_white",
        xaxis={"title": {"text": cost.name}, "type": "log" if cost.scale == "log10" else "linear"},
        yaxis={"title": {"text": quality.name}},
        legend={"orientation": "h", "y": -0.2},
    )
    return figure


def figure_html(figure: "Figure") -> str:
    """A page that needs no network: plotly's script is part of it."""
    return str(figure.to_html(include_plotlyjs=True, full_html=True))


def figure_png(figure: "Figure", *, width: int = 1000, height: int = 640) -> bytes:
    """The figure as a picture, drawn by kaleido.

    Raises:
        RuntimeError: Kaleido finds no browser to draw with.
    """
    return bytes(figure.to_image(format="png", width=width, height=height, scale=2))


def _drawable(trial: TrialRecord, *names: str) -> bool:
    return (
        trial.state is TrialState.COMPLETED
        and trial.rung == 1.0
        and all(trial.objectives.get(name) is not None for name in names)
    )


def _confirmed(
    graph_objects: Any,
    found: Confirmation,
    trials: Sequence[TrialRecord],
    frames: Sequence[ObjectiveFrame],
    redrawn: Sequence[int],
) -> list[Any]:
    """Means with error bars, by split; a line through the means that none beats."""
    by_number, cost, quality = {trial.number: trial for trial in trials}, frames[1], frames[0].name
    ordered = sorted(
        (each for each in found.trials.values() if each.trial in by_number),
        key=lambda each: by_number[each.trial].objectives[cost.name] or 0.0,
    )
    traces = []
    for split, colour, symbol in (
        ("validation", _GREEN, "square"),
        ("test", "#7c3aed", "diamond"),
    ):
        seen = [(each, own) for each in ordered if (own := getattr(each, split)) is not None]
        if not seen:
            continue
        means = [own.over.mean for _, own in seen]
        traces.append(
            graph_objects.Scatter(
                name=f"{split}, mean of seeds",
                mode="markers",
                x=[by_number[each.trial].objectives[cost.name] for each, _ in seen],
                y=means,
                error_y={"type": "data", "array": [own.over.reach for _, own in seen]},
                marker={"color": colour, "size": 9, "symbol": symbol},
                text=[
                    f"trial {each.trial}, {own.over.n} seeds on {split}"
                    + ("" if own.difference is None else f": {own.difference.mark.value}")
                    for each, own in seen
                ],
                hovertemplate=f"%{{text}}<br>{quality} %{{y:.4f}}<extra></extra>",
            )
        )
    kept = [number for number in redrawn if number in by_number]
    if len(kept) > 1:
        joined = sorted(kept, key=lambda n: by_number[n].objectives[cost.name] or 0.0)
        traces.append(
            graph_objects.Scatter(
                name="front of the means",
                mode="lines",
                x=[by_number[n].objectives[cost.name] for n in joined],
                y=[own.over.mean for n in joined if (own := found.trials[n].validation)],
                line={"color": _GREEN, "shape": "hv", "dash": "dot"},
                hoverinfo="skip",
            )
        )
    return traces


def _trace(
    graph_objects: Any,
    name: str,
    trials: Collection[TrialRecord],
    axes: tuple[str, str],
    look: dict[str, Any],
) -> Any:
    return graph_objects.Scatter(
        name=name,
        x=[trial.objectives[axes[0]] for trial in trials],
        y=[trial.objectives[axes[1]] for trial in trials],
        text=[f"trial {t.number}{f' ({t.baseline})' if t.baseline else ''}" for t in trials],
        hovertemplate=f"%{{text}}<br>{axes[0]} %{{x:,}}<br>{axes[1]} %{{y:.4f}}<extra></extra>",
        **look,
    )
