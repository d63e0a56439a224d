"""The importance map as a figure: layers x sites, with a trial's placement laid over it."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.importance import ImportanceMap, Key
from autopeft.configuration import Configuration
from autopeft.searchers.coverage import matrices_of
from dashboard import palette, words
from dashboard.charts import framed

MEAN, SUM = "mean weight", "sum of weights"
MEASURES = (MEAN, SUM)
"""How a site's score is told: large matrices have large sums whatever their weights are worth."""

EXITS = {"attention": ("output",), "ffn": ("down",)}
"""Where what stands behind a sub-layer is drawn: at its last map."""

_MANY_LAYERS = 24
"""Beyond this, a cell is too narrow for its text."""


def importance_heatmap(
    found: ImportanceMap,
    score: str,
    *,
    measure: str = MEAN,
    placed: Mapping[Key, str] | None = None,
) -> go.Figure:
    """Layers across, sites down; the colour is the site's score, relative to the largest.

    Args:
        found: The map.
        score: Which score.
        measure: One of `MEASURES`.
        placed: What a trial has at sites, see `placed_at`.
    """
    values = _values(found, score, measure)
    roles = [role for role in LINEAR_ROLES if any(key[1] == role for key in values)]
    layers = sorted({layer for layer, _ in values})
    top = max(values.values()) or 1.0
    shades = np.array(
        [[values.get((layer, role), np.nan) / top for layer in layers] for role in roles]
    )
    figure = go.Figure(
        go.Heatmap(
            z=shades,
            x=[str(layer) for layer in layers],
            y=roles,
            zmin=0.0,
            zmax=1.0,
            colorscale=[(0.0, palette.NOTHING), (0.02, palette.SIZES[0][1]), *palette.SIZES[1:]],
            showscale=False,
            xgap=3,
            ygap=3,
            texttemplate="%{z:.2f}" if len(layers) <= _MANY_LAYERS else None,
            customdata=[
                [f"{values.get((layer, role), float('nan')):.4g}" for layer in layers]
                for role in roles
            ],
            hovertemplate="%{y}, layer %{x}: %{customdata}<extra></extra>",
        )
    )
    if placed:
        _overlay(figure, {key: text for key, text in placed.items() if key in values})
    figure.update_xaxes(title="layer", type="category", showgrid=False, zeroline=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, automargin=True)
    figure.update_layout(showlegend=False)
    return framed(figure, 90 + 40 * len(roles))


def layer_bars(found: ImportanceMap, score: str) -> go.Figure:
    """Every layer's share of the whole."""
    totals = found.layers(score)
    whole = sum(totals.values()) or 1.0
    layers = sorted(totals)
    figure = go.Figure(
        go.Bar(
            x=[str(layer) for layer in layers],
            y=[totals[layer] / whole for layer in layers],
            marker={"color": palette.FRONT},
            hovertemplate="layer %{x}: %{y:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(title="share of the whole", tickformat=".0%", rangemode="tozero")
    return framed(figure, 240)


def placed_at(configuration: Configuration) -> dict[Key, str]:
    """What a configuration has at linear sites; what sits on none at those that it stands for."""
    placed: dict[Key, list[str]] = {}
    for group in configuration.groups:
        for site in group.sites or (group.method,):
            for role in EXITS.get(site) or matrices_of(site):
                for layer in group.layers:
                    placed.setdefault((layer, role), []).append(group.method)
    return {key: ", ".join(dict.fromkeys(methods)) for key, methods in placed.items()}


def _values(found: ImportanceMap, score: str, measure: str) -> dict[Key, float]:
    return {
        key: own.total / (len(own.inputs) * len(own.outputs) if measure == MEAN else 1)
        for key, own in found.of(score).items()
    }


def _overlay(figure: go.Figure, placed: Mapping[Key, str]) -> None:
    figure.add_trace(
        go.Scatter(
            x=[str(layer) for layer, _ in placed],
            y=[role for _, role in placed],
            mode="markers",
            marker={
                "symbol": "square-open",
                "size": 26,
                "color": palette.SELECTED,
                "line": {"width": 3},
            },
            hovertext=[
                f"{words.figure_text(text)} at {role}, layer {layer}"
                for (layer, role), text in placed.items()
            ],
            hoverinfo="text",
        )
    )
