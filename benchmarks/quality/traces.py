"""Traces: searches of every searcher on every emulated task, one parquet row per cohort.

A trace is of one table, as it is emulated: with another table, emulator or simulation it is made
anew. The searchers' own code may have moved on since; the report names traces of other code.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

import autopeft.searchers
from autopeft.searchers.base import Problem, Searcher
from autopeft.searchers.dominance import non_dominated
from autopeft.searchers.registry import make_searcher
from benchmarks.quality.kept_importance import kept_file, read_kept
from benchmarks.quality.problem import task_problem
from benchmarks.quality.rules_emulator import emulator_of
from benchmarks.quality.simulation import Setup, Simulation
from benchmarks.quality.tasks import IMPORTANCE, MIXED, TASKS

TRIALS = 200
"""Trials of the reference, and the budget of every other searcher in mean full trials."""

MOST = 1000
"""Configurations at most, of those that train many cheap or short trials."""

TRACES = "traces.parquet"

FULL = (1.0,)

DEFAULT_RUNGS = (0.2, 1.0)
"""As a study has them that says nothing."""

TWO_RUNGS = (0.1, 0.2, 1.0)
"""What a search gains or loses by stopping trials twice ..."""

THREE_RUNGS = (0.1, 0.2, 0.33, 1.0)
"""... or three times instead of once."""

FEW_SEEDS = 5
"""Of what is only there to show what a default does."""

PACK = 8
"""Proposals of an ask of ours."""

OURS = "autopeft"
"""The contender that the others are compared with: without the portfolio, whose learning rates
were set with TREC-6 in view."""

WITHOUT_PRIOR = "autopeft (no importance)"
"""Ours without the importance map among what it models trials by."""


@dataclass(frozen=True)
class Contender:
    """A searcher as it is run.

    Attributes:
        make: Makes it.
        setup: How it is run.
        initial: Trials of its start; Optuna's samplers and the reference have their own.
        portfolio: Whether `gp` begins with what publications found good.
        seeds: How many.
        prior: Whether it is shown the importance map, where the table has one (see
            `without_prior`).
        spaces: Of the tables that it is run on.
    """

    make: Callable[[Problem], Searcher]
    setup: Setup
    initial: int = 8
    portfolio: bool = False
    seeds: int = 10
    prior: bool = True
    spaces: tuple[str, ...] = (MIXED, IMPORTANCE)

    def runs_on(self, task: str) -> bool:
        """Whether it is run on a table."""
        return TASKS[task].space in self.spaces


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
    "autopeft (portfolio)": Contender(_named("gp"), _stopping(DEFAULT_RUNGS), portfolio=True),
    "autopeft (two rungs)": Contender(_named("gp"), _stopping(TWO_RUNGS), seeds=FEW_SEEDS),
    "autopeft (three rungs)": Contender(_named("gp"), _stopping(THREE_RUNGS), seeds=FEW_SEEDS),
    "autopeft (no rungs)": Contender(_named("gp"), _full(PACK), seeds=FEW_SEEDS),
    WITHOUT_PRIOR: Contender(
        _named("gp"), _stopping(DEFAULT_RUNGS), prior=False, spaces=(IMPORTANCE,)
    ),
    "random": Contender(_named("random"), _full(1)),
    "evolution": Contender(_named("evolution"), _full(1)),
    "nsga2": Contender(_named("nsga2"), _full(1)),
    "tpe": Contender(_named("tpe"), _full(1)),
    "gpsampler": Contender(_named("gpsampler"), _full(1), seeds=5),
    "reference": Contender(_named("reference"), REFERENCE, seeds=3, spaces=(MIXED,)),
    "reference (as released)": Contender(_released, REFERENCE, seeds=3, spaces=(MIXED,)),
}


PLAIN = ("random", "evolution", "nsga2", "tpe", "gpsampler")
"""Those that ours must not be behind of at any budget."""


def run(name: str, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One trace.

    Args:
        name: A contender.
        rows: A recorded table.
        seed: Of the searcher and of the noise.

    Returns:
        One row per cohort, with the columns of `Step`, and `searcher`, `task`, `seed` and `code`
        (see `searcher_code`); `front` is of the last row only: the noise-free front of all that
        was trained, as JSON.
    """
    contender = CONTENDERS[name]
    problem = task_problem(rows.attrs, seed=seed, initial=contender.initial)
    problem = replace(problem, portfolio=contender.portfolio)
    emulator = emulator_of(rows, problem)
    searcher = contender.make(problem if contender.prior else without_prior(problem))
    simulation = Simulation(problem, emulator, searcher, contender.setup, seed)
    trace = pd.DataFrame([asdict(step) for step in simulation.run()])
    points = simulation.points()
    front = points[non_dominated(points)].round(6).tolist()
    trace["front"] = [""] * (len(trace) - 1) + [json.dumps(front)]
    return trace.assign(
        searcher=name, task=rows.attrs["task"], seed=seed, code=searcher_code(name)
    )


def without_prior(problem: Problem) -> Problem:
    """The same problem, of whose importance map the searcher's features know nothing.

    Space, costs and everything that trains stay: a point `keep: 1/4` still means the best quarter
    of the sites, so what is compared is coverage among the features, not the choice of places.
    That choice could not be taken back on a recorded table: it holds configurations at the best
    places alone, and no emulator knows what it never saw.
    """
    return replace(problem, anatomy=replace(problem.anatomy, importance=None))


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
    path = tables / TRACES
    for seed in range(max(CONTENDERS[name].seeds for name in names)):
        for name, task in product(names, tasks):
            seeds = min(CONTENDERS[name].seeds, most_seeds or CONTENDERS[name].seeds)
            ground = ground_of(tables, task)
            if not CONTENDERS[name].runs_on(task):
                continue
            if seed >= seeds or has_trace(load_traces(tables), name, task, seed, ground):
                continue
            trace = run(name, load_table(tables, task), seed).assign(ground=ground)
            last = trace.iloc[-1]
            print(
                f"{name}, {task}, seed {seed}: hypervolume {last.hypervolume:.4f} after "
                f"{last.trials} trials, cost {last.cost:.1f}, {last.suggest_s:.0f} s proposing",
                flush=True,
            )
            add_trace(path, trace)
    return path


def add_trace(path: Path, trace: pd.DataFrame) -> None:
    """Put a trace in the place of an older one; several processes may trace at once."""
    name, task, seed = trace.iloc[0][["searcher", "task", "seed"]]
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        every = load_traces(path.parent)
        same = (every["searcher"] == name) & (every["task"] == task) & (every["seed"] == seed)
        every = pd.concat([every[~same], trace], ignore_index=True)
        every.to_parquet(path.with_suffix(".tmp"), index=False)
        path.with_suffix(".tmp").replace(path)


def has_trace(every: pd.DataFrame, name: str, task: str, seed: int, ground: str) -> bool:
    """Whether a trace was made on the same ground."""
    same = (every["searcher"] == name) & (every["task"] == task) & (every["seed"] == seed)
    return bool((same & (every["ground"] == ground)).any())


def ground_of(tables: Path, task: str) -> str:
    """12 hexadecimal digits of what a trace stands on: the table, its emulator, the simulation."""
    parts = [tables / f"{task}.parquet"]
    names = ["emulator", "simulation"]
    if TASKS[task].space == IMPORTANCE:
        names += ["rules_emulator", "kept_importance"]
        parts.append(kept_file(tables, task))
    parts += [Path(__file__).with_name(f"{name}.py") for name in names]
    return _digest(parts)


def searcher_code(name: str) -> str:
    """12 hexadecimal digits of the code that proposes: a trace of other code may be out of date.

    Ours is all of `autopeft.searchers` but the named baselines, of which a table keeps its own;
    the others change with a few files.
    """
    own = Path(autopeft.searchers.__path__[0])
    few = ("random", "evolution", "candidates", "optuna_bridge", "optuna_trials")
    if name.startswith(OURS):
        named = {own / "presets.py", own / "published.py"}
        return _digest(sorted({*own.glob("*.py")} - named))
    if name.startswith("reference"):
        return _digest([*sorted((own / "reference").glob("*.py")), own / "candidates.py"])
    return _digest([own / f"{each}.py" for each in few])


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def load_traces(tables: Path) -> pd.DataFrame:
    """What was traced so far; empty at first."""
    if (tables / TRACES).exists():
        return pd.read_parquet(tables / TRACES)
    return pd.DataFrame({name: [] for name in ("searcher", "task", "seed", "ground", "code")})


def load_table(folder: Path, task: str) -> pd.DataFrame:
    """A recorded table; its metadata are in `attrs`, with what it keeps of an importance map."""
    rows = pd.read_parquet(folder / f"{task}.parquet")
    rows.attrs |= read_kept(folder, task)
    return rows
