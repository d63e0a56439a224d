"""From measurements to ratios, verdicts and the table."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.measuring import Arm, Key, Record, Records


@dataclass(frozen=True)
class Work:
    """What one side of a ratio did.

    Attributes:
        arm: The arm's name.
        trials: Only the parts of these trials; None for all.
    """

    arm: str
    trials: frozenset[int] | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table: how many times less time `after` takes than `before`.

    Attributes:
        factor: What differs between them, and nothing else does.
        before: The slower side, one hopes.
        after: The other.
        phase: `total`, `train` or `evaluation`.
        per_sample: Whether seconds are divided by the rows trained.
        bar: The least ratio wanted, or None where none is.
    """

    factor: str
    before: Work
    after: Work
    phase: str = "total"
    per_sample: bool = False
    bar: float | None = None


@dataclass(frozen=True)
class Fact:
    """A line that is no ratio: a number computed from the records.

    Attributes:
        name: What it is.
        value: From the records of one repeat to the number.
        bar: The largest value wanted, or None.
        unit: Written behind it.
    """

    name: str
    value: Callable[["Repeat"], float]
    bar: float | None = None
    unit: str = ""


class Repeat:
    """All records of one scenario's repeat.

    Args:
        scenario: Its name.
        arms: Its arms.
        number: The repeat.
        records: Where they lie.
    """

    def __init__(self, scenario: str, arms: Sequence[Arm], number: int, records: Records) -> None:
        self._scenario, self._number, self._records = scenario, number, records
        self._arms = {arm.name: arm for arm in arms}

    def of(self, work: Work) -> list[Record]:
        """The records of one side's parts."""
        parts = [
            part
            for part in self._arms[work.arm].parts
            if work.trials is None or set(part.trials) <= work.trials
        ]
        if not parts:
            raise ValueError(f"{work.arm} has no part of trials {work.trials}")
        keys: list[Key] = [(self._scenario, work.arm, part.label, self._number) for part in parts]
        return [self._records[key] for key in keys]


def seconds(records: Iterable[Record], line: Line) -> tuple[float, float]:
    """Wall and CPU seconds of a side (per sample, where the line says so)."""
    found = list(records)
    spans = [record.measured.span(line.phase) for record in found]
    rows = sum(record.measured.samples for record in found) if line.per_sample else 1
    return sum(wall for wall, _ in spans) / rows, sum(cpu for _, cpu in spans) / rows


@dataclass(frozen=True)
class Result:
    """A line, measured.

    Attributes:
        scenario: Where it belongs.
        factor: The line's name.
        values: The ratio (or number) of each repeat.
        cpu_values: The ratio of CPU seconds of each repeat; () where there is none.
        before_s: Median wall seconds of `before`.
        after_s: Of `after`.
        bar: What was wanted, or None.
        at_most: Whether the bar is an upper one.
        unit: `x` for ratios.
        mixed: Repeats whose two sides were measured in different sittings.
        skipped: Why it was not measured, or "".
    """

    scenario: str
    factor: str
    values: tuple[float, ...] = ()
    cpu_values: tuple[float, ...] = ()
    before_s: float | None = None
    after_s: float | None = None
    bar: float | None = None
    at_most: bool = False
    unit: str = "x"
    mixed: int = 0
    skipped: str = ""

    @property
    def median(self) -> float:
        """Over the repeats."""
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """`reached`, `missed by ...`, or "" where there is no bar."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        if self.bar is None:
            return ""
        sign = "<=" if self.at_most else ">="
        short = self.median - self.bar if self.at_most else self.bar - self.median
        wanted = f"{sign} {self.bar:g}{self.unit}"
        return f"{wanted} reached" if short <= 0 else f"{wanted} missed by {short:.3g}"

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        plain = dict(vars(self))
        if self.values:
            plain |= {"median": self.median, "low": min(self.values), "high": max(self.values)}
        return plain | {"verdict": self.verdict}


def evaluate(scenario: str, line: Line | Fact, repeats: Sequence[Repeat]) -> Result:
    """A line over all repeats."""
    if isinstance(line, Fact):
        values = tuple(line.value(repeat) for repeat in repeats)
        return Result(scenario, line.name, values, bar=line.bar, at_most=True, unit=line.unit)
    walls, cpus, sides, mixed = [], [], [], 0
    for repeat in repeats:
        before, after = repeat.of(line.before), repeat.of(line.after)
        mixed += len({record.sitting for record in (*before, *after)}) > 1
        one, other = seconds(before, line), seconds(after, line)
        walls.append(one[0] / other[0])
        cpus.append(one[1] / other[1])
        sides.append((one[0], other[0]))
    return Result(
        scenario,
        line.factor,
        tuple(walls),
        tuple(cpus),
        statistics.median(before for before, _ in sides),
        statistics.median(after for _, after in sides),
        line.bar,
        mixed=mixed,
    )


HEADER = ("factor", "before", "after", "ratio", "range", "cpu", "verdict")


def table(results: Sequence[Result]) -> str:
    """The results of one scenario as text, one line each."""
    rows = [HEADER, *(_cells(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _cells(result: Result) -> tuple[str, ...]:
    if result.skipped or not result.values:
        return (result.factor, "", "", "", "", "", result.verdict)
    cpu = f"{statistics.median(result.cpu_values):.2f}" if result.cpu_values else ""
    ratio = f"{result.median:.2f}x" if result.unit == "x" else f"{result.median:.3g}{result.unit}"
    mixed = f" ({result.mixed} repeats over two sittings)" if result.mixed else ""
    return (
        result.factor,
        _time(result.before_s),
        _time(result.after_s),
        ratio,
        f"{min(result.values):.3g}-{max(result.values):.3g}",
        cpu,
        result.verdict + mixed,
    )


def _time(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value >= 1.0 else f"{1000 * value:.3g} ms"
