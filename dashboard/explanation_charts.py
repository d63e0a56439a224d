"""Plotly figures that explain a search: what mattered, and predicted against measured."""

from collections.abc import Sequence

import plotly.graph_objects as go

from autopeft.searchers.explain.choices import in_words
from autopeft.searchers.explain.importances import Importances
from autopeft.searchers.explain.predictions import Prediction, Predictions
from dashboard import palette, words
from dashboard.charts import framed

FAINT = 0.35
"""Opacity of a bar that cannot be told from noise."""


def importance_chart(told: Sequence[tuple[Importances, str]], choices: Sequence[str]) -> go.Figure:
    """How much choices matter: a group of bars per choice, a bar per target, with its error.

    Args:
        told: Importances with the colour of their bars.
        choices: The choices to show, the most important first.
    """
    figure = go.Figure()
    for importances, color in told:
        by_name = {each.choice: each for each in importances.choices}
        shown = [by_name[choice] for choice in choices]
        figure.add_trace(
            go.Bar(
                x=[max(0.0, each.share) for each in shown],
                y=[words.figure_text(in_words(choice)) for choice in choices],
                orientation="h",
                name=words.figure_text(words.label(importances.target)),
                marker={
                    "color": color,
                    "opacity": [1.0 if each.clear else 0.35 for each in shown],
                },
                error_x={
                    "type": "data",
                    "array": [each.error for each in shown],
                    "color": palette.DOMINATED,
                    "thickness": 1.5,
                    "width": 4,
                },
                customdata=[[each.share, each.error] for each in shown],
                hovertemplate="%{y}: %{customdata[0]:.2f} ± %{customdata[1]:.2f}<extra>"
                f"{words.figure_text(words.label(importances.target))}</extra>",
            )
        )
    figure.update_xaxes(title="share of the variance", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix="  ")
    figure.update_layout(barmode="group", bargap=0.3, bargroupgap=0.08)
    return framed(figure, 110 + 46 * len(choices))


def prediction_chart(predictions: Predictions) -> go.Figure:
    """Measured over predicted, a point per trial; on the diagonal, both are the same.

    A point's `customdata` is `[trial number]`.
    """
    pairs = predictions.pairs
    means, measured = [p.mean for p in pairs], [p.measured for p in pairs]
    spreads = [p.sd or 0.0 for p in pairs]
    low, high = min([*means, *measured]), max([*means, *measured])
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    ends = [low - margin, high + margin]
    figure = go.Figure(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": palette.DOMINATED, "dash": "dot", "width": 1.5},
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=means,
            y=measured,
            mode="markers",
            marker={"color": palette.QUALITY, "size": 9},
            error_x={"array": spreads, "color": palette.DOMINATED, "thickness": 1, "width": 0},
            customdata=[[p.trial] for p in pairs],
            hovertext=[_predicted(predictions.metric, pair) for pair in pairs],
            hoverinfo="text",
        )
    )
    label = words.figure_text(words.label(predictions.metric))
    figure.update_xaxes(title=f"predicted {label}, ± 1 sd", range=ends)
    figure.update_yaxes(title=f"measured {label}", range=ends)
    figure.update_layout(showlegend=False, hovermode="closest")
    return framed(figure, 460)


def _predicted(metric: str, pair: Prediction) -> str:
    spread = "" if pair.sd is None else f" ± {words.number(pair.sd)}"
    return (
        f"<b>trial {pair.trial}</b><br>predicted: {words.metric_value(metric, pair.mean)}{spread}"
        f"<br>measured: {words.metric_value(metric, pair.measured)}"
    )
