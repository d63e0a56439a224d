"""Traces: searches of every searcher on every emulated task, one parquet row per cohort."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
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
"""Trials of the reference, and the budget of every other searcher in mean full trials."""

MOST = 1000
"""Configurations at most, of those that train many cheap or short trials."""

FULL = (1.0,)

DEFAULT_RUNGS = (0.1, 0.2, 0.33, 1.0)
"""As a study has them that says nothing: in these short trainings 5 % is no rung."""

PACK = 8
"""Proposals of an ask of ours."""

OURS = "autopeft"
"""The contender that the others are compared with: without the portfolio, whose learning rates
were set with TREC-6 in view."""


@dataclass(frozen=True)
class Contender:
    """A searcher as it is run.

    Attributes:
        make: Makes it.
        setup: How it is run.
        initial: Trials of its start; Optuna's samplers and the reference have their own.
        portfolio: Whether `gp` begins with what publications found good.
        seeds: How many.
    """

    make: Callable[[Problem], Searcher]
    setup: Setup
    initial: int = 8
    portfolio: bool = False
    seeds: int = 10


def _named(name: str) -> Callable[[Problem], Searcher]:
    return partial(make_searcher, name)


def _released(problem: Problem) -> Searcher:
    from benchmarks.quality.released import ReleasedSearcher

    return ReleasedSearcher(problem)


def _full(q: int) -> Setup:
    """Every trial in full: what the searcher's users do. One at a time helps a searcher most."""
    return Setup(q=q, rungs=FULL, stops=False, trials=MOST, cost=float(TRIALS))


REFERENCE = Setup(q=4, rungs=FULL, stops=False, trials=TRIALS, cost=1e9)
"""As published: 200 trials, however long their proposals take."""


def _stopping(rungs: tuple[float, ...]) -> Setup:
    return Setup(q=PACK, rungs=rungs, stops=True, trials=MOST, cost=float(TRIALS))


CONTENDERS: Mapping[str, Contender] = {
    OURS: Contender(_named("gp"), _stopping(DEFAULT_RUNGS)),
    "autopeft, portfolio": Contender(_named("gp"), _stopping(DEFAULT_RUNGS), portfolio=True),
    "autopeft, no rungs": Contender(_named("gp"), _full(PACK)),
    "random": Contender(_named("random"), _full(1)),
    "evolution": Contender(_named("evolution"), _full(1)),
    "nsga2": Contender(_named("nsga2"), _full(1)),
    "tpe": Contender(_named("tpe"), _full(1)),
    "gpsampler": Contender(_named("gpsampler"), _full(1), seeds=5),
    "reference": Contender(_named("reference"), REFERENCE, seeds=3),
    "reference, as released": Contender(_released, REFERENCE, seeds=3),
}


def run(name: str, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One trace.

    Args:
        name: A contender.
        rows: A recorded table.
        seed: Of the searcher and of the noise.

    Returns:
        One row per cohort, with the columns of `Step`, and `searcher`, `task` and `seed`; `front`
        is of the last row only: the noise-free front of all that was trained, as JSON.
    """
    contender = CONTENDERS[name]
    problem = task_problem(rows.attrs, seed=seed, initial=contender.initial)
    problem = replace(problem, portfolio=contender.portfolio)
    emulator = Emulator(Table.of(rows), problem)
    simulation = Simulation(problem, emulator, contender.make(problem), contender.setup, seed)
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
