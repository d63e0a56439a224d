"""The methods as a picture: mean accuracy over trainable parameters, the front joined."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.importance_runs.report import current
from benchmarks.method_runs.arms import LORA
from benchmarks.method_runs.report import front, means

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_GREY, _BLUE, _ORANGE = "#9ca3af", "#2563eb", "#ea580c"


def draw(every: pd.DataFrame, path: Path) -> None:
    """Write the picture in the format of the file's suffix: html, svg or png."""
    made = figure(current(every))
    if path.suffix == ".html":
        made.write_html(path, include_plotlyjs="cdn")
    else:
        made.write_image(path, width=1100, height=700, scale=2)


def figure(trials: pd.DataFrame) -> "Figure":
    """Every method at every budget, averaged over the tasks that all were trained on."""
    from plotly import graph_objects

    sized = means(trials).groupby(["arm", "rank"], as_index=False)[["accuracy", "params"]].mean()
    best = front(sized)
    of_lora = sized[sized["arm"] == LORA].sort_values("params")
    made = graph_objects.Figure()
    for name, rows, look in (
        ("methods", sized, {"mode": "markers+text", "marker": {"color": _GREY, "size": 7}}),
        ("LoRA", of_lora, {"mode": "lines+markers", "line": {"color": _ORANGE}}),
        ("front", best, {"mode": "lines+markers", "line": {"color": _BLUE, "shape": "hv"}}),
    ):
        made.add_trace(
            graph_objects.Scatter(
                x=rows["params"],
                y=rows["accuracy"],
                text=rows["arm"],
                textposition="top center",
                textfont={"size": 9},
                name=name,
                **look,
            )
        )
    tasks = ", ".join(sorted(set(trials["task"])))
    made.update_xaxes(type="log", title="trainable parameters")
    made.update_yaxes(title=f"accuracy, mean of {tasks}", tickformat=".0%")
    made.update_layout(template="plotly_white", legend={"orientation": "h"})
    return made
