"""Trains what the table lacks, in packs: rates first, then trials, then timed steps."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from autopeft.configuration import Configuration
from autopeft.training.lanes.pack import Lane
from benchmarks.importance_runs import table
from benchmarks.importance_runs.arms import ARMS, RANKS, Case, configured, moved_params
from benchmarks.importance_runs.grounds import TUNING, Ground

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

TUNING_RANK = RANKS[1]

TUNING_REPLICATE = 1000
"""Not one of those that are reported."""

PACK = 8
"""Trials trained together, by default; results do not depend on it, and a GPU takes more."""


@dataclass(frozen=True)
class Plan:
    """What is recorded.

    Attributes:
        arms: By name.
        tasks: By name.
        ranks: Budgets.
        replicates: Seeds.
        tables: Where the table lies.
        ground: Gives a task, ready to train on.
        pack: Trials trained together.
    """

    arms: Sequence[str]
    tasks: Sequence[str]
    ranks: Sequence[int]
    replicates: Sequence[int]
    tables: Path
    ground: Callable[[str], Ground]
    pack: int = PACK


@dataclass(frozen=True)
class Job:
    """One training to do.

    Attributes:
        row: Its slot, hash and ground.
        configuration: What trains.
    """

    row: dict[str, Any]
    configuration: Configuration


def job(ground: Ground, stage: str, name: str, case: Case, rate: float) -> Job:
    """A training of an arm."""
    configuration = configured(ARMS[name], case, rate)
    row = {
        "stage": stage,
        "task": ground.name,
        "arm": name,
        "rank": case.rank,
        "replicate": case.replicate,
        "rate": rate,
        "hash": configuration.hash,
        "ground": ground.digest,
        "params": moved_params(configuration, case.anatomy),
    }
    return Job(row, configuration)


# -- learning rates -------------------------------------------------------------------------------


def record_rates(plan: Plan) -> None:
    """Train every arm at every rate, at the middle budget."""
    ground = plan.ground(TUNING)
    case = Case(ground.anatomy, TUNING_RANK, TUNING_REPLICATE)
    jobs = [job(ground, table.RATE, name, case, rate) for name, rate in product(plan.arms, RATES)]
    train(ground, jobs, plan.tables, pack=plan.pack)


def chosen_rates(
    every: pd.DataFrame, wanted: Callable[[str], Iterable[float]] = lambda name: RATES
) -> dict[str, float]:
    """The best rate of every arm that tried all: by accuracy, then by loss.

    Args:
        every: Rows of `table`.
        wanted: All rates of an arm.
    """
    tried = every[every["stage"] == table.RATE]
    chosen = {}
    for name, rows in tried.groupby("arm"):
        if set(rows["rate"]) >= set(wanted(str(name))):
            loss = rows["loss"].fillna(float("inf"))
            ranked = rows.assign(loss=loss).sort_values(
                ["accuracy", "loss", "rate"], ascending=[False, True, True]
            )
            chosen[str(name)] = float(ranked["rate"].iloc[0])
    return chosen


# -- trials ---------------------------------------------------------------------------------------


def record_trials(plan: Plan) -> None:
    """Train every arm on every task, at every budget, with every seed.

    Seeds come last: whatever was recorded when one stops early is complete in the others.
    """
    rates = chosen_rates(table.load(plan.tables))
    for replicate, task, rank in product(plan.replicates, plan.tasks, plan.ranks):
        ground = plan.ground(task)
        case = Case(ground.anatomy, rank, replicate)
        jobs = [
            job(ground, table.TRIAL, name, case, rates[name])
            for name in plan.arms
            if name in rates
        ]
        train(ground, jobs, plan.tables, pack=plan.pack)


def train(
    ground: Ground, jobs: Iterable[Job], tables: Path, *, pack: int, name: str = table.NAME
) -> None:
    """Train the jobs that a table lacks, and keep every pack's rows.

    Args:
        ground: On what.
        jobs: All that the table should hold.
        tables: Where it lies.
        pack: Trials trained together.
        name: The table's.
    """
    every = table.load(tables, name)
    left = [each for each in jobs if not table.has(every, each.row)]
    for first in range(0, len(left), pack):
        rows = trained(ground, left[first : first + pack])
        table.put(tables, rows, name)
        for row in rows:
            print(_line(row), flush=True)


def trained(ground: Ground, pack: Sequence[Job]) -> list[dict[str, Any]]:
    """The rows of a pack that is trained now; CPU seconds are shared out evenly."""
    began, cpu = time.perf_counter(), time.process_time()
    lanes = [Lane(number, each.configuration) for number, each in enumerate(pack)]
    run = ground.trainer.start(lanes, replicate=pack[0].row["replicate"])
    run.train(ground.steps)
    found = run.evaluate()
    spent = {
        "cpu_seconds": (time.process_time() - cpu) / len(pack),
        "seconds": (time.perf_counter() - began) / len(pack),
    }
    rows = []
    for number, each in enumerate(pack):
        values, diverged = found[number].values, found[number].diverged
        rows.append(
            {
                **each.row,
                **spent,
                "accuracy": ground.constant if diverged else values["accuracy"],
                "loss": values.get("loss"),
                "diverged": diverged,
            }
        )
    return rows


def _line(row: dict[str, Any]) -> str:
    name, at = f"{row['stage']} {row['task']} {row['arm']}", time.strftime("%H:%M:%S")
    return (
        f"{at} {name}, rank {row['rank']}, seed {row['replicate']}, rate {row['rate']:g}: "
        f"{row['accuracy']:.3f} ({row['cpu_seconds']:.1f} CPU s)"
    )
