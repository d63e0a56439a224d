"""Traces: searches of every searcher on every emulated task, one parquet row per cohort."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from autopeft.searchers.base import Problem, Searcher
from autopeft.searchers.dominance import non_dominated
from autopeft.searchers.registry import make_searcher
from benchmarks.quality.emulator import Emulator, Table
from benchmarks.quality.problem import task_problem
from benchmarks.quality.simulation import Setup, Simulation

TRIALS = 200
"""Full trials of the reference, and the budget of every searcher."""

FULL = (1.0,)

OURS = "autopeft"
"""The contender that the others are compared with."""


@dataclass(frozen=True)
class Contender:
    """A searcher as it is run.

    Attributes:
        searcher: Its name in the registry.
        setup: How.
        initial: Trials of its start.
        seeds: How many.
    """

    searcher: str
    setup: Setup
    initial: int
    seeds: int = 10


def _sequential(trials: int = TRIALS) -> Setup:
    """One full trial after the other: what helps a searcher most and what its users do."""
    return Setup(q=1, rungs=FULL, stops=False, trials=trials, cost=float(trials))


CONTENDERS: Mapping[str, Contender] = {
    "autopeft": Contender("gp", Setup(8, (0.1, 0.33, 1.0), True, 600, float(TRIALS)), 16),
    "autopeft, no rungs": Contender("gp", Setup(8, FULL, False, TRIALS, float(TRIALS)), 16),
    "random": Contender("random", _sequential(), 16),
    "evolution": Contender("evolution", _sequential(), 16),
}


def run(
    name: str,
    rows: pd.DataFrame,
    seed: int,
    make: Callable[[str, Problem], Searcher] = make_searcher,
) -> pd.DataFrame:
    """One trace.

    Args:
        name: A contender.
        rows: A recorded table.
        seed: Of the searcher and of the noise.
        make: Makes a searcher by name.

    Returns:
        One row per cohort, with the columns of `Step`, and `searcher`, `task` and `seed`; `front`
        is of the last row only: the noise-free front of all that was trained, as JSON.
    """
    contender = CONTENDERS[name]
    problem = task_problem(rows.attrs, seed=seed, initial=contender.initial)
    emulator = Emulator(Table.of(rows), problem)
    simulation = Simulation(
        problem, emulator, make(contender.searcher, problem), contender.setup, seed
    )
    trace = pd.DataFrame([asdict(step) for step in simulation.run()])
    points = simulation.points()
    front = points[non_dominated(points)].round(6).tolist()
    trace["front"] = [""] * (len(trace) - 1) + [json.dumps(front)]
    return trace.assign(searcher=name, task=rows.attrs["task"], seed=seed)


def record_traces(
    tables: Path, names: Sequence[str], tasks: Sequence[str], *, most_seeds: int | None = None
) -> Path:
    """Run what `traces.parquet` lacks; it is written after every run.

    Args:
        tables: Where tables lie, and the traces.
        names: Contenders.
        tasks: Recorded tasks.
        most_seeds: Fewer seeds than a contender has.

    Returns:
        The file.
    """
    path = tables / "traces.parquet"
    every = load_traces(tables)
    done = set(zip(every["searcher"], every["task"], every["seed"], strict=True))
    for seed in range(max(CONTENDERS[name].seeds for name in names)):
        for name, task in product(names, tasks):
            seeds = min(CONTENDERS[name].seeds, most_seeds or CONTENDERS[name].seeds)
            if seed >= seeds or (name, task, seed) in done:
                continue
            trace = run(name, load_table(tables, task), seed)
            last = trace.iloc[-1]
            print(
                f"{name}, {task}, seed {seed}: hypervolume {last.hypervolume:.4f} after "
                f"{last.trials} trials, cost {last.cost:.1f}, {last.suggest_s:.0f} s proposing",
                flush=True,
            )
            every = pd.concat([load_traces(tables), trace], ignore_index=True)
            every.to_parquet(path.with_suffix(".tmp"), index=False)
            path.with_suffix(".tmp").replace(path)
    return path


def load_traces(tables: Path) -> pd.DataFrame:
    """What was traced so far; empty at first."""
    path = tables / "traces.parquet"
    if path.exists():
        return pd.read_parquet(path)
    return pd.DataFrame({"searcher": [], "task": [], "seed": []})


def load_table(folder: Path, task: str) -> pd.DataFrame:
    """A recorded table; its metadata are in `attrs`."""
    return pd.read_parquet(folder / f"{task}.parquet")
