"""Trains what the table lacks, in packs: rates first, then trials, then timed steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from autopeft.configuration import Group
from benchmarks.importance_runs import table
from benchmarks.importance_runs.grounds import TUNING, Ground
from benchmarks.importance_runs.probing import AT_ONCE, probed
from benchmarks.importance_runs.recording import (
    PACK,
    TUNING_REPLICATE,
    Job,
    chosen_rates,
    train,
)
from benchmarks.method_runs.arms import LORA, MIDDLE, RANKS, arms, budget, configured, params

NAME = "methods.parquet"
"""The table; its columns are those of `importance_runs.table`."""


@dataclass(frozen=True)
class Plan:
    """What is recorded.

    Attributes:
        arms: By name.
        tasks: By name.
        replicates: Seeds.
        tables: Where the table lies.
        ground: Gives a task, ready to train on.
        ranks: Of the LoRA whose parameters are the budgets.
        tuning: The task that learning rates are chosen on.
        pack: Trials trained together.
    """

    arms: Sequence[str]
    tasks: Sequence[str]
    replicates: Sequence[int]
    tables: Path
    ground: Callable[[str], Ground]
    ranks: Sequence[int] = RANKS
    tuning: str = TUNING
    pack: int = PACK


def record_rates(plan: Plan) -> None:
    """Train every arm at every rate of its own, at the middle budget."""
    ground = plan.ground(plan.tuning)
    jobs = []
    for name in plan.arms:
        (group,) = arms()[name].groups(ground.anatomy, [budget(ground.anatomy, MIDDLE)])
        for rate in arms()[name].rates:
            jobs.append(_job(ground, table.RATE, name, MIDDLE, group, rate, TUNING_REPLICATE))
    train(ground, jobs, plan.tables, pack=plan.pack, name=NAME)


def rates_of(every: pd.DataFrame) -> Mapping[str, float]:
    """The chosen rate of every arm that tried all of its own."""
    known = arms()
    return chosen_rates(every, lambda name: known[name].rates if name in known else (0.0,))


def record_trials(plan: Plan) -> None:
    """Train every arm on every task, at every budget, with every seed; seeds come last."""
    rates = rates_of(table.load(plan.tables, NAME))
    for replicate, task in product(plan.replicates, plan.tasks):
        ground = plan.ground(task)
        jobs = [
            _job(ground, table.TRIAL, name, rank, group, rates[name], replicate)
            for name in plan.arms
            if name in rates
            for rank, group in arms()[name].at_budgets(ground.anatomy, plan.ranks).items()
        ]
        train(ground, jobs, plan.tables, pack=plan.pack, name=NAME)


def record_probes(plan: Plan) -> None:
    """Time every arm at every budget on the first task, in turns with LoRA of that budget."""
    rates = rates_of(table.load(plan.tables, NAME))
    ground = plan.ground(plan.tasks[0])
    sized = {
        name: arms()[name].at_budgets(ground.anatomy, plan.ranks)
        for name in dict.fromkeys([LORA, *plan.arms])
        if name in rates
    }
    for rank in plan.ranks:
        jobs = [
            _job(ground, table.PROBE, name, rank, groups[rank], rates[name], plan.replicates[0])
            for name, groups in sized.items()
            if rank in groups
        ]
        every = table.load(plan.tables, NAME)
        left = [each for each in jobs if not table.has(every, each.row)]
        for first in range(0, len(left), AT_ONCE):
            rows = probed(ground, left[first : first + AT_ONCE], jobs[0])
            table.put(plan.tables, rows, NAME)
            print(f"probe, rank {rank}: {first + len(rows)} of {len(left)}", flush=True)


def _job(
    ground: Ground, stage: str, name: str, rank: int, group: Group, rate: float, replicate: int
) -> Job:
    configuration = configured(group, rate)
    row = {
        "stage": stage,
        "task": ground.name,
        "arm": name,
        "rank": rank,
        "replicate": replicate,
        "rate": rate,
        "hash": configuration.hash,
        "ground": ground.digest,
        "params": params(group, ground.anatomy),
    }
    return Job(row, configuration)
