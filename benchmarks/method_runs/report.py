"""From the table to what is said: every method beside LoRA of the same size, as markdown."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.importance_runs import table
from benchmarks.importance_runs.report import current, listed, markdown, points, signed
from benchmarks.importance_runs.statistics import differences, interval, qualities
from benchmarks.method_runs.arms import LORA, arms
from benchmarks.method_runs.recording import rates_of


@dataclass(frozen=True)
class Standing:
    """How a method did.

    Attributes:
        fronts: Tasks on whose front one of its sizes lies, by the mean over the seeds.
        beaten: Whether, on every task and at each of its budgets, its mean is below LoRA's.
        better: Budgets (ranks) at which the interval of the difference to LoRA lies above zero.
        worse: Budgets at which it lies below.
    """

    fronts: tuple[str, ...]
    beaten: bool
    better: tuple[int, ...]
    worse: tuple[int, ...]

    @property
    def loses(self) -> bool:
        """Whether it loses everywhere: on no front, and below LoRA wherever they meet."""
        return self.beaten and not self.fronts


def report(every: pd.DataFrame) -> str:
    """Everything, as markdown.

    Args:
        every: Rows of `importance_runs.table`.
    """
    trials = current(every)
    names = [name for name in (LORA, *sorted(set(trials["arm"]) - {LORA})) if _known(name)]
    ranks = sorted({int(rank) for rank in trials["rank"]})
    found = {name: standing(trials, name) for name in names if name != LORA}
    parts = [
        _told(trials, names),
        _qualities(every, trials, names, ranks),
        "Accuracy minus LoRA's at the same budget, in points, paired by task and seed; `*`: the "
        "95 % interval leaves out zero. Steps are CPU seconds, solo, to LoRA's of that budget.",
        _differences(every, trials, names, ranks),
        *_fronts(trials),
        *_words(found),
        *_rate_words(every, names),
    ]
    return "\n\n".join(part for part in parts if part)


def means(trials: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and parameters by task, arm and rank: the mean over the seeds."""
    return trials.groupby(["task", "arm", "rank"], as_index=False)[["accuracy", "params"]].mean()


def front(sized: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other beats in both accuracy and parameters, the smallest first."""
    ordered = sized.sort_values(["params", "accuracy"], ascending=[True, False])
    best = ordered["accuracy"].cummax().shift(fill_value=-math.inf)
    return ordered[ordered["accuracy"] > best]


def standing(trials: pd.DataFrame, name: str) -> Standing:
    """How a method did beside LoRA and on the fronts."""
    mean = means(trials)
    fronts = [str(task) for task, rows in mean.groupby("task") if name in set(front(rows)["arm"])]
    by_arm = mean.set_index(["task", "rank", "arm"])["accuracy"].unstack("arm")
    both = by_arm[[name, LORA]].dropna()
    ranks = sorted({int(rank) for rank in trials[trials["arm"] == name]["rank"]})
    gaps = {rank: interval(differences(trials, name, LORA, rank)) for rank in ranks}
    return Standing(
        fronts=tuple(fronts),
        beaten=bool(len(both)) and bool((both[name] < both[LORA]).all()),
        better=tuple(rank for rank in ranks if gaps[rank].above),
        worse=tuple(rank for rank in ranks if gaps[rank].below),
    )


def _known(name: str) -> bool:
    return name in arms()


# -- tables ---------------------------------------------------------------------------------------


def _told(trials: pd.DataFrame, names: Sequence[str]) -> str:
    tasks, seeds = sorted(set(trials["task"])), trials["replicate"].nunique()
    failed = int(trials["diverged"].astype(bool).sum())
    whole = trials.groupby(["arm", "rank"]).ngroups * len(tasks) * seeds
    missing = f"; {whole - len(trials)} of {whole} trials are missing" * (len(trials) < whole)
    return (
        f"{', '.join(tasks)}; {len(names)} methods, {seeds} seeds; {len(trials)} trials, {failed} "
        f"of them diverged{missing}; {trials['cpu_seconds'].mean():.1f} CPU seconds a trial."
    )


def _budgets(trials: pd.DataFrame, ranks: Sequence[int]) -> list[str]:
    of = trials[trials["arm"] == LORA].groupby("rank")["params"].first()
    return [f"{int(of[rank]):,}" if rank in of else f"LoRA r={rank}" for rank in ranks]


def _qualities(
    every: pd.DataFrame, trials: pd.DataFrame, names: Sequence[str], ranks: Sequence[int]
) -> str:
    rates, sizes = rates_of(every), trials.groupby(["arm", "rank"])["params"].first()
    rows = []
    for name in names:
        cells = []
        for rank in ranks:
            found = interval(qualities(trials, name, rank))
            own = f" ({int(sizes[name, rank]):,})" if (name, rank) in sizes.index else ""
            cells.append(points(found) + own)
        rows.append([name, f"{rates[name]:g}" if name in rates else "-", *cells])
    head = ["accuracy, % (parameters)", "rate", *_budgets(trials, ranks)]
    return markdown(head, rows)


def _differences(
    every: pd.DataFrame, trials: pd.DataFrame, names: Sequence[str], ranks: Sequence[int]
) -> str:
    probes = every[every["stage"] == table.PROBE].set_index(["arm", "rank"])["step_ratio"]
    rows = []
    for name in names:
        if name == LORA:
            continue
        cells = [signed(interval(differences(trials, name, LORA, rank))) for rank in ranks]
        steps = [f"{probes[name, r]:.2f}" if (name, r) in probes.index else "-" for r in ranks]
        rows.append([name, *cells, " / ".join(steps)])
    return markdown(["minus LoRA", *_budgets(trials, ranks), "step / LoRA's"], rows)


# -- words ----------------------------------------------------------------------------------------


def _fronts(trials: pd.DataFrame) -> Iterable[str]:
    for task, rows in means(trials).groupby("task"):
        shown = [
            f"{row['arm']} {100 * row['accuracy']:.1f} ({int(row['params']):,})"
            for _, row in front(rows).iterrows()
        ]
        yield f"Front of {task}: {', '.join(shown)}."


def _words(found: Mapping[str, Standing]) -> Iterable[str]:
    loses = [name for name, each in found.items() if each.loses]
    yield (
        "**Lose everywhere** (on no task's front, and below LoRA on every task at every budget "
        f"where both were trained): {listed(loses)}."
    )
    yield f"Better than LoRA at some budget: {_at(found, lambda each: each.better)}."
    yield f"Worse than LoRA at some budget: {_at(found, lambda each: each.worse)}."
    compared = len(found)
    yield (
        f"({compared} methods at 95 % each and up to three budgets: where none differed from "
        f"LoRA, about {0.05 * compared:.0f} to {0.15 * compared:.0f} would still seem to.)"
    )


def _at(found: Mapping[str, Standing], of: Callable[[Standing], tuple[int, ...]]) -> str:
    named = [
        f"{name} (r={'/'.join(map(str, of(each)))})" for name, each in found.items() if of(each)
    ]
    return listed(named)


def _rate_words(every: pd.DataFrame, names: Sequence[str]) -> Iterable[str]:
    rates = rates_of(every)
    ends = [
        name
        for name in names
        if name in rates and rates[name] in (arms()[name].rates[0], arms()[name].rates[-1])
    ]
    yield f"Learning rates at an end of the method's range: {listed(ends)}."
