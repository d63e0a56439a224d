"""Which rules for stopping are compared, and how their figures are told."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.errors import NotHereError
from benchmarks.quality.public_runs import public_runs
from benchmarks.quality.rung_replay import Rule, dominance, halving, layers, ours, replay
from benchmarks.quality.rung_tables import RungTable, recorded, rung_noise
from benchmarks.quality.tasks import MIXED, OF_SPACE

COHORT, ORDERS = 8, 50
"""Trials of a cohort, and random orders of the trials in which a rule is replayed."""

PUBLIC_RUNGS = (
    (0.05, 0.1, 0.2, 0.35),
    (0.05, 0.1, 0.3),
    (0.05, 0.1, 0.2),
    (0.05, 0.1),
    (0.2,),
    (0.05, 0.15),
    (0.1, 0.3),
)
RECORDED_RUNGS = ((0.1, 0.2, 0.33), (0.1, 0.2), (0.1, 0.33), (0.2,))
"""Rungs that are replayed; of each, the first are taken for the rules beside ours."""


@dataclass(frozen=True)
class Row:
    """One rule at some rungs."""

    label: str
    early: tuple[float, ...]
    rule: Rule


def rows(early: Sequence[tuple[float, ...]]) -> list[Row]:
    """Our rule at these rungs, the first of which are the ones to choose; then others there."""
    chosen = early[0]
    third = 1.0 / 3.0
    return [
        *(Row("ours", each, ours()) for each in early),
        Row("ours, keep 1/3", chosen, ours(keep=third)),
        Row("ours, keep 1/2", chosen, ours(keep=0.5)),
        Row("ours, noise 0", chosen, ours(noise_sds=0.0)),
        Row("ours, noise 0.5 sd", chosen, ours(noise_sds=0.5)),
        Row("ours, noise 2 sd", chosen, ours(noise_sds=2.0)),
        Row("ours, blind to losses", chosen, ours(losses=False)),
        Row("layers, keep 0.4", chosen, layers(0.4)),
        Row("quality alone, keep 0.4", chosen, halving(0.4)),
    ]


def known_rows() -> list[Row]:
    """Rules whose figures on the public runs are known from elsewhere."""
    third = 1.0 / 3.0
    return [
        Row("layers, keep 1/2", (0.05,), layers(0.5)),
        Row("layers, keep 1/3", (0.05,), layers(third)),
        Row("dominance by 0.10", (0.05, 0.1, 0.2), dominance(0.1)),
        Row("layers, keep 1/3", (0.05, 0.2), layers(third)),
        Row("layers, keep 1/3", (0.05, 0.15, 0.4), layers(third)),
        Row("quality alone, keep 1/3", (0.05, 0.2), halving(third)),
        Row("quality alone, keep 1/3", (0.05, 0.15, 0.4), halving(third)),
    ]


def figures(table: RungTable, row: Row, *, orders: int = ORDERS) -> dict[str, Any]:
    """A row's outcome all at once, and in cohorts over random orders: plain JSON."""
    n = len(table.final)
    shuffled = [np.random.default_rng(seed).permutation(n).tolist() for seed in range(orders)]
    found = [replay(table, row.early, row.rule, order=o, cohort=COHORT) for o in shuffled]
    at_once = replay(table, row.early, row.rule)
    return {
        "table": table.name,
        "rule": row.label,
        "rungs": list(row.early),
        "at_once": asdict(at_once),
        "cohorts": {
            "saving": _quartiles([each.saving for each in found]),
            "kept": _quartiles([each.kept for each in found]),
            "lost": float(np.mean([each.lost for each in found])),
            "surely_lost": float(np.mean([each.surely_lost for each in found])),
        },
    }


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.percentile(values, [25, 50, 75])]


def line(found: Mapping[str, Any]) -> str:
    """A row of a Markdown table."""
    once, cohorts = found["at_once"], found["cohorts"]
    low, middle, high = cohorts["saving"]
    worse, kept, better = (100.0 * value for value in cohorts["kept"])
    rungs = ", ".join(f"{share:g}" for share in found["rungs"])
    return (
        f"| {found['rule']} | {rungs} "
        f"| {once['saving']:.2f}x | {100.0 * once['kept']:.1f} % "
        f"| {once['lost']} ({once['surely_lost']}) "
        f"| {middle:.2f}x ({low:.2f}-{high:.2f}) | {kept:.1f} % ({worse:.1f}-{better:.1f}) "
        f"| {cohorts['lost']:.1f} ({cohorts['surely_lost']:.1f}) |"
    )


COLUMNS = (
    "rule",
    "rungs",
    "fewer steps, all at once",
    "hypervolume kept",
    "front members stopped (beyond noise)",
    f"fewer steps, cohorts of {COHORT} (quartiles)",
    "hypervolume kept (quartiles)",
    "front members stopped (beyond noise)",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def rung_report(*, data: Path | None, tables: Path, orders: int = ORDERS) -> list[dict[str, Any]]:
    """Print the figures of every table that is here.

    Args:
        data: Folder of all data sets, or None.
        tables: Folder of the recorded tables.
        orders: Random orders.

    Returns:
        The figures, plain JSON.

    Raises:
        NotHereError: There is neither.
    """
    here: list[tuple[RungTable, list[Row]]] = []
    if data is not None:
        here.append((public_runs(data), [*known_rows(), *rows(PUBLIC_RUNGS)]))
    files = [path for name in OF_SPACE[MIXED] if (path := tables / f"{name}.parquet").exists()]
    here += [(recorded(path), rows(RECORDED_RUNGS)) for path in files]
    if not here:
        raise NotHereError(
            f"no data folder (--data, AUTOPEFT_BENCH_DATA) and no table in {tables}"
        )
    found = []
    for table, compared in here:
        size, own = len(table.final), len(table.baselines)
        print(f"\n{table.name}: {size} trials, {own} of them baselines\n\n{HEADER}", flush=True)
        for row in compared:
            found.append(figures(table, row, orders=orders))
            print(line(found[-1]), flush=True)
    for path in files:
        noise = ", ".join(f"{share:g}: {sd:.4f}" for share, sd in rung_noise(path).items())
        print(f"\n{path.stem}: standard deviation between seeds, by rung: {noise or 'one seed'}")
    return found
