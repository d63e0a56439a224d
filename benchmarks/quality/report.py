"""From traces to figures: cost to reach shares of the pooled front, areas, paired differences.

Hypervolumes are of noise-free values, as shares of that of the task's pooled front: the noise-free
front of all that any search trained. What a search is worth is, in the first place, what its user
sees: the configurations on the front that it *measured*, lucky ones among them; beside it stands
what it *found*: everything that it trained in full, as if all of it were confirmed. Costs are in
mean full trials, evaluations and suggestions included.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student
from scipy.stats import wilcoxon

from autopeft.searchers.dominance import hypervolume, non_dominated
from benchmarks.quality.problem import task_problem
from benchmarks.quality.rules_emulator import emulator_of

BUDGETS = (10, 15, 20, 30, 40, 60, 80, 100, 150, 200)
"""Budgets at which searchers are compared."""

SHARES = (0.90, 0.95, 0.99)
"""Shares of the pooled front's hypervolume."""

LAST = 200.0

SLACK = 0.005
"""Share of the hypervolume within which two searchers count as equal."""


@dataclass(frozen=True)
class Run:
    """One search: its hypervolume as a share of the pooled front's, as a step function of cost.

    Attributes:
        searcher: Its name.
        task: The task.
        seed: Its seed.
        costs: `[n]` ascending.
        training: `[n]`: of the costs, training.
        shares: `[n]`.
        suggest_s: CPU seconds per proposed configuration.
    """

    searcher: str
    task: str
    seed: int
    costs: NDArray[np.float64]
    training: NDArray[np.float64]
    shares: NDArray[np.float64]
    suggest_s: float

    def at(self, budget: float) -> float:
        """The share when `budget` was spent."""
        index = int(np.searchsorted(self.costs, budget, side="right")) - 1
        return float(self.shares[index]) if index >= 0 else 0.0

    def cost_to(self, share: float) -> float:
        """What was spent when the share was reached and not lost again, or infinity."""
        below = np.flatnonzero(self.shares < share)
        first = int(below[-1]) + 1 if len(below) else 0
        return float(self.costs[first]) if first < len(self.costs) else math.inf

    def area(self) -> float:
        """The mean share over the budget, from nothing to `LAST`."""
        edges = np.append(np.minimum(self.costs, LAST), LAST)
        return float((np.diff(edges) * self.shares).sum() / LAST)


def runs(
    traces: pd.DataFrame, *, evaluations: bool = True, worth: str = "hypervolume"
) -> list[Run]:
    """All searches, against the pooled front of their task.

    Args:
        traces: As `traces.record_traces` wrote them.
        evaluations: Whether evaluating counts as cost too.
        worth: The column that tells what a search is worth: `hypervolume` or `found`.
    """
    pooled = {task: pooled_hypervolume(group) for task, group in traces.groupby("task")}
    found = []
    for (searcher, task, seed), trace in traces.groupby(["searcher", "task", "seed"]):
        found.append(
            Run(
                str(searcher),
                str(task),
                int(seed),
                (trace["cost"] - (not evaluations) * trace["evaluating"]).to_numpy(),
                trace["training"].to_numpy(),
                trace[worth].to_numpy() / pooled[task],
                float(trace["suggest_s"].iloc[-1] / trace["trials"].iloc[-1]),
            )
        )
    return found


def emulator_line(rows: pd.DataFrame) -> str:
    """What the emulator of a table is worth, on rows that it was not fitted to."""
    problem = task_problem(rows.attrs, seed=0, initial=1)
    emulator = emulator_of(rows, problem)
    table, found = emulator.table, emulator.held_out()
    return (
        f"{rows.attrs['task']}: {len(table.configurations)} configurations, held out: Spearman "
        f"{found['spearman']:.3f}, RMSE {found['rmse']:.4f} (accuracies spread by "
        f"{found['sd']:.4f}, one seed is off by {found['noise']:.4f}); "
        f"{table.seconds:.1f} s a trial"
    )


def pooled_hypervolume(traces: pd.DataFrame) -> float:
    """The hypervolume of everything that any search of a task found."""
    points = [point for text in traces["front"] if text for point in json.loads(text)]
    array = np.array(points)
    return hypervolume(array[non_dominated(array)])


def summary(every: Sequence[Run]) -> pd.DataFrame:
    """Per searcher, over tasks and seeds: median [quartiles] of costs, areas and suggestions."""
    rows = []
    for name in dict.fromkeys(run.searcher for run in every):
        own = [run for run in every if run.searcher == name]
        row: dict[str, object] = {"searcher": name, "runs": len(own)}
        for share in SHARES:
            row[f"cost to {share:.0%}"] = _quartiles([run.cost_to(share) for run in own], "{:.0f}")
        for budget in (20, 50, 200):
            row[f"share at {budget}"] = _quartiles([run.at(budget) for run in own], "{:.3f}")
        row["area"] = _quartiles([run.area() for run in own], "{:.3f}")
        row["s per suggestion"] = f"{np.median([run.suggest_s for run in own]):.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def paired(every: Sequence[Run], ours: str, other: str) -> pd.DataFrame:
    """Differences of the shares at every budget, paired by task and seed.

    Returns:
        Per budget: mean difference, the half-width of its 95 % interval (Student's t), the
        p-value of Wilcoxon's signed-rank test, and the number of pairs.
    """
    pairs = _pairs(every, ours, other)
    rows = []
    for budget in BUDGETS if pairs else ():
        differences = np.array([a.at(budget) - b.at(budget) for a, b in pairs])
        n = len(differences)
        spread = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        moved = n > 1 and np.any(differences != 0)
        rows.append(
            {
                "budget": budget,
                "difference": float(differences.mean()),
                "half_width": spread * float(student.ppf(0.975, n - 1)) if n > 1 else math.nan,
                "p": float(wilcoxon(differences).pvalue) if moved else math.nan,
                "pairs": n,
            }
        )
    return pd.DataFrame(rows)


def against_best(every: Sequence[Run], ours: str, others: Sequence[str]) -> pd.DataFrame:
    """How far ours is ahead of the best of the others, at every budget, by task and over all.

    Returns:
        Per task and budget: the other with the highest mean share, the mean difference to it, the
        half-width of its paired 95 % interval, and `behind`: the names of all others that ours is
        behind by more than `SLACK` and more than the half-width of their interval.
    """
    rows = []
    for task in [*sorted({run.task for run in every}), ""]:
        own = [run for run in every if task in ("", run.task)]
        tables = {name: paired(own, ours, name).set_index("budget") for name in others}
        tables = {name: table for name, table in tables.items() if len(table)}
        for budget in BUDGETS if tables else ():
            at = {name: table.loc[budget] for name, table in tables.items()}
            best = min(at, key=lambda name: float(at[name]["difference"]))
            beaten_by = [
                name
                for name, row in at.items()
                if row["difference"] < -max(SLACK, np.nan_to_num(row["half_width"]))
            ]
            rows.append(
                {
                    "task": task or "all",
                    "budget": budget,
                    "best other": best,
                    "difference": float(at[best]["difference"]),
                    "half_width": float(at[best]["half_width"]),
                    "behind": ", ".join(beaten_by) or "none",
                }
            )
    return pd.DataFrame(rows)


def speedup(every: Sequence[Run], ours: str, other: str, share: float) -> tuple[float, int]:
    """Median over pairs of other's cost to a share over ours, and the pairs where ours got there.

    A pair in which the other never got there counts with what it had spent at its end, so the
    ratio is a lower bound.
    """
    ratios = [
        min(theirs.cost_to(share), float(theirs.costs[-1])) / mine.cost_to(share)
        for mine, theirs in _pairs(every, ours, other)
    ]
    return (float(np.median(ratios)), sum(r > 0 for r in ratios)) if ratios else (math.nan, 0)


def to_level_of(every: Sequence[Run], ours: str, other: str) -> tuple[float, int]:
    """Median over pairs of the other's whole training over our cost to the level it ended at.

    Returns:
        The ratio (our suggestions and evaluations count, the other's do not), and the pairs where
        ours got there.
    """
    ratios = [
        float(theirs.training[-1]) / mine.cost_to(float(theirs.shares[-1]))
        for mine, theirs in _pairs(every, ours, other)
    ]
    return (float(np.median(ratios)), sum(r > 0 for r in ratios)) if ratios else (math.nan, 0)


def times_less(ratio: float, arrived: int) -> str:
    """What `speedup` and `to_level_of` found, in words; 0 where most pairs never arrived."""
    if math.isnan(ratio):
        return "no pairs"
    if ratio == 0.0:
        return f"not told: ours arrived in fewer than half of the pairs ({arrived})"
    return f"{ratio:.2f}x less (median; ours arrived in {arrived} pairs)"


def _pairs(every: Sequence[Run], ours: str, other: str) -> list[tuple[Run, Run]]:
    """Runs of two searchers on the same task with the same seed."""
    mine = {(run.task, run.seed): run for run in every if run.searcher == ours}
    theirs = {(run.task, run.seed): run for run in every if run.searcher == other}
    return [(mine[key], theirs[key]) for key in sorted(mine.keys() & theirs.keys())]


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; numbers with four digits."""
    shown = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))
    lines = [list(table.columns), ["---"] * len(table.columns), *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(every: Sequence[Run], path: Path) -> None:
    """Median share against cost with quartiles, one panel per task; SVG or PNG by suffix."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    tasks = sorted({run.task for run in every})
    names = list(dict.fromkeys(run.searcher for run in every))
    figure = make_subplots(rows=1, cols=len(tasks), subplot_titles=tasks, shared_yaxes=True)
    grid = np.geomspace(4, LAST, 120)
    for column, task in enumerate(tasks, start=1):
        for name, colour in zip(names, qualitative.Safe * 2, strict=False):
            own = [run for run in every if run.task == task and run.searcher == name]
            if not own:
                continue
            curves = np.array([[run.at(budget) for budget in grid] for run in own])
            low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
            band = {
                "x": np.concatenate([grid, grid[::-1]]),
                "y": np.concatenate([high, low[::-1]]),
            }
            fill = colour.replace("rgb", "rgba").replace(")", ",0.15)")
            figure.add_scatter(
                **band, fill="toself", fillcolor=fill, line_width=0, showlegend=False,
                hoverinfo="skip", row=1, col=column,
            )  # fmt: skip
            figure.add_scatter(
                x=grid, y=middle, name=name, line={"color": colour, "shape": "hv"},
                legendgroup=name, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(type="log", title="cost, mean full trials")
    figure.update_yaxes(title="share of the pooled hypervolume", col=1, row=1)
    figure.update_layout(template="plotly_white", width=420 * len(tasks) + 180, height=440)
    assert isinstance(figure, go.Figure)
    if path.suffix == ".html":
        figure.write_html(path)
    else:
        figure.write_image(path)


def _quartiles(values: Sequence[float], form: str) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    shown = [form.format(v) if math.isfinite(v) else "never" for v in (middle, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
