"""The methods as a picture: mean accuracy over trainable parameters, the front joined."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.importance_runs.report import current
from benchmarks.method_runs.arms import LORA
from benchmarks.method_runs.report import front, means

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_GREY, _BLUE, _ORANGE = "#9ca3af", "#2563eb", "#ea580c"

DEPTH = 0.06
"""What is shown below LoRA's worst size; anything lower is named beneath the picture."""


def draw(every: pd.DataFrame, path: Path) -> None:
    """Write the picture in the format of the file's suffix: html, svg or png."""
    made = figure(current(every))
    if path.suffix == ".html":
        made.write_html(path, include_plotlyjs="cdn", config={"displayModeBar": False})
    else:
        made.write_image(path, width=1100, height=700, scale=2)


def figure(trials: pd.DataFrame) -> "Figure":
    """Every method at every budget, averaged over the tasks; LoRA and the front are named."""
    from plotly import graph_objects

    sized = means(trials).groupby(["arm", "rank"], as_index=False)[["accuracy", "params"]].mean()
    best = front(sized)
    of_lora = sized[sized["arm"] == LORA].sort_values("params")
    least = of_lora["accuracy"].min() - DEPTH
    shown, below = sized[sized["accuracy"] >= least], sized[sized["accuracy"] < least]
    joined = {"mode": "lines+markers+text", "textposition": "top left", "textfont": {"size": 11}}
    made = graph_objects.Figure()
    for name, rows, look in (
        ("methods", shown, {"mode": "markers", "marker": {"color": _GREY, "size": 7}}),
        ("LoRA", of_lora, {**joined, "line": {"color": _ORANGE}, "textposition": "bottom right"}),
        ("front", best, {**joined, "line": {"color": _BLUE, "shape": "hv"}}),
    ):
        made.add_trace(
            graph_objects.Scatter(
                x=rows["params"],
                y=rows["accuracy"],
                text=rows["arm"],
                hovertemplate="%{text}: %{y:.1%}, %{x:,} parameters",
                name=name,
                **look,
            )
        )
    tasks = ", ".join(sorted(set(trials["task"])))
    room = [math.log10(shown["params"].min()) - 0.2, math.log10(shown["params"].max()) + 0.1]
    made.update_xaxes(
        type="log", range=room, title=f"trainable parameters<br><sub>{_named(below)}</sub>"
    )
    made.update_yaxes(title=f"accuracy, mean of {tasks}", tickformat=".0%")
    made.update_layout(template="plotly_white", legend={"orientation": "h", "y": 1.08})
    return made


def _named(below: pd.DataFrame) -> str:
    """What lies too low to be shown, by method, in lines of a few."""
    if below.empty:
        return ""
    names = [
        f"{name} {' / '.join(f'{value:.0%}' for value in rows.sort_values('params')['accuracy'])}"
        for name, rows in below.groupby("arm")
    ]
    lines = [", ".join(names[start : start + 6]) for start in range(0, len(names), 6)]
    return "lower: " + "<br>".join(lines)
