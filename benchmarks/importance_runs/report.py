"""From the table to what is said: every rule beside chance and beside LoRA, as markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.importance_runs import table
from benchmarks.importance_runs.arms import ARMS, Arm
from benchmarks.importance_runs.recording import RATES, chosen_rates
from benchmarks.importance_runs.statistics import Interval, differences, interval, qualities

LORA = "lora"


@dataclass(frozen=True)
class Verdicts:
    """Which rules that choose did what against their control by chance, over all budgets.

    Attributes:
        better: The interval of the difference lies above zero.
        worse: It lies below.
        open: It holds zero.
        unknown: There are too few pairs to tell.
    """

    better: tuple[str, ...]
    worse: tuple[str, ...]
    open: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def not_better(self) -> tuple[str, ...]:
        """Those that do not beat chance."""
        return (*self.open, *self.worse)


def report(every: pd.DataFrame, arms: Mapping[str, Arm] = ARMS) -> str:
    """Everything, as markdown.

    Args:
        every: Rows of `table`.
        arms: What is compared.
    """
    trials = current(every)
    ranks = sorted({int(rank) for rank in trials["rank"]})
    names = [name for name in arms if name in set(trials["arm"])]
    parts = [
        _told(trials, names, ranks),
        _qualities(trials, names, ranks, arms),
        "Differences of accuracy, in points, paired by task and seed: to the control, to others "
        "and to LoRA.",
        _differences(trials, names, ranks, arms),
        _costs(every, names, ranks),
        *_words(verdicts(trials, arms)),
        *_rate_words(every, names),
    ]
    return "\n\n".join(part for part in parts if part)


def current(every: pd.DataFrame) -> pd.DataFrame:
    """The trials; where a task was trained on several grounds, those of the last."""
    trials = every[every["stage"] == table.TRIAL]
    last = trials.groupby("task")["ground"].transform("last")
    return trials[trials["ground"] == last]


def verdicts(trials: pd.DataFrame, arms: Mapping[str, Arm] = ARMS) -> Verdicts:
    """What every rule with a control by chance comes to."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "open": [], "unknown": []}
    for name, arm in arms.items():
        if name == LORA or arm.chance or not arms[arm.control].chance:
            continue
        own = interval(differences(trials, name, arm.control))
        if math.isnan(own.half):
            found["unknown"].append(name)
        else:
            found["better" if own.above else "worse" if own.below else "open"].append(name)
    return Verdicts(**{name: tuple(names) for name, names in found.items()})


# -- tables ---------------------------------------------------------------------------------------


def _told(trials: pd.DataFrame, names: Sequence[str], ranks: Sequence[int]) -> str:
    tasks, seeds = sorted(set(trials["task"])), trials["replicate"].nunique()
    whole = len(names) * len(ranks) * len(tasks) * seeds
    missing = f"; {whole - len(trials)} of {whole} trials are missing" * (len(trials) < whole)
    failed = int(trials["diverged"].astype(bool).sum())
    return (
        f"{', '.join(tasks)}; {seeds} seeds; {len(trials)} trials, {failed} of them diverged"
        f"{missing}; {trials['cpu_seconds'].mean():.1f} CPU seconds a trial; none is further than "
        f"{100 * _furthest(trials):.1f} % from LoRA's parameters."
    )


def _furthest(trials: pd.DataFrame) -> float:
    """The largest share by which a trial's parameters are off LoRA's at the same budget."""
    of = trials[trials["arm"] == LORA].groupby("rank")["params"].first()
    return float((trials["params"] / trials["rank"].map(of) - 1.0).abs().max())


def _qualities(
    trials: pd.DataFrame, names: Sequence[str], ranks: Sequence[int], arms: Mapping[str, Arm]
) -> str:
    rows = []
    for name in names:
        cells = [points(interval(qualities(trials, name, rank))) for rank in ranks]
        rows.append([f"{name} (chance)" if arms[name].chance else name, *cells])
    return markdown(["accuracy, %", *_budgets(trials, ranks)], rows)


def _budgets(trials: pd.DataFrame, ranks: Sequence[int]) -> list[str]:
    of = trials[trials["arm"] == LORA].groupby("rank")["params"].first()
    return [f"{int(of[rank]):,}" if rank in of else f"LoRA r={rank}" for rank in ranks]


def _differences(
    trials: pd.DataFrame, names: Sequence[str], ranks: Sequence[int], arms: Mapping[str, Arm]
) -> str:
    rows = []
    for name in names:
        arm = arms[name]
        against = dict.fromkeys([arm.control, *arm.others, LORA]) if name != LORA else {}
        for other in against:
            over_all = signed(interval(differences(trials, name, other)))
            each = [signed(interval(differences(trials, name, other, rank))) for rank in ranks]
            rows.append([name, other, over_all, *each])
    return markdown(["rule", "minus", "all budgets", *_budgets(trials, ranks)], rows)


def _costs(every: pd.DataFrame, names: Sequence[str], ranks: Sequence[int]) -> str:
    """Seconds and memory at every budget, and how far parameters are from it."""
    probes = every[every["stage"] == table.PROBE].set_index(["arm", "rank"])
    if probes.empty:
        return "No probes yet: `record --stages probes` times a step of every rule."
    rows = []
    for name in names:
        own = [probes.loc[name, rank] for rank in ranks if (name, rank) in probes.index]
        if own:
            ratios = " / ".join(f"{each['step_ratio']:.2f}" for each in own)
            peaks = " / ".join(f"{each['peak_bytes'] / 2**20:.1f}" for each in own)
            step = f"{1e3 * own[-1]['step_cpu_seconds']:.0f}"
            rows.append([name, step, ratios, peaks, _params(probes, name, ranks)])
    budgets = " / ".join(f"r={rank}" for rank in ranks)
    return markdown(
        [
            "solo",
            "CPU ms/step, largest budget",
            f"to LoRA, {budgets}",
            "peak MiB above the backbone",
            "parameters to LoRA's",
        ],
        rows,
    )


def _params(probes: pd.DataFrame, name: str, ranks: Sequence[int]) -> str:
    found = [
        f"{probes.loc[(name, rank), 'params'] / probes.loc[(LORA, rank), 'params']:.3f}"
        for rank in ranks
        if (name, rank) in probes.index and (LORA, rank) in probes.index
    ]
    return " / ".join(found)


# -- words ----------------------------------------------------------------------------------------


def _words(found: Verdicts) -> Iterable[str]:
    total = len(found.better) + len(found.not_better)
    yield f"Beat their control by chance: {listed(found.better)}."
    yield f"Do **not** beat chance: {listed(found.not_better)}."
    if found.worse:
        yield f"Of these, worse than chance: {listed(found.worse)}."
    if found.unknown:
        yield f"Too few pairs to tell: {listed(found.unknown)}."
    yield (
        f"({total} rules at 95 % each: where none were better than chance, about "
        f"{0.025 * total:.1f} would still seem so.)"
    )


def _rate_words(every: pd.DataFrame, names: Sequence[str]) -> Iterable[str]:
    rates = chosen_rates(every)
    if not rates:
        return
    yield "Learning rates: " + ", ".join(f"{n} {rates[n]:g}" for n in names if n in rates) + "."
    edge = [name for name in names if rates.get(name) in (min(RATES), max(RATES))]
    yield f"At an end of the grid ({min(RATES):g} to {max(RATES):g}): {listed(edge)}."


def listed(names: Sequence[str]) -> str:
    """Names in a row, or none."""
    return ", ".join(names) or "none"


def points(found: Interval) -> str:
    """A mean in percent, and half its interval."""
    if not found.n:
        return "-"
    half = "" if math.isnan(found.half) else f" ± {100 * found.half:.1f}"
    return f"{100 * found.mean:.1f}{half}"


def signed(found: Interval) -> str:
    """A difference in points, starred where its interval leaves out zero."""
    if not found.n:
        return "-"
    half = "" if math.isnan(found.half) else f" ± {100 * found.half:.1f}"
    star = "" if math.isnan(found.half) or not (found.above or found.below) else " *"
    return f"{100 * found.mean:+.1f}{half}{star}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)
