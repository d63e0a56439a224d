"""A short run on the machine that answers two questions once per study: pack size and precision.

Packs of 1, 2, 4, ... lanes of one configuration take the same steps of the study's own data in
turns; a size's seconds are the median of its repeats after a warm-up. The answers are stored with
the study, so that a resumed study never asks again and timing never changes its sequence.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from autopeft.configuration import Configuration
from autopeft.errors import TrialError
from autopeft.execution.steady import middling_batch, steady_trainer, timed_steps
from autopeft.training.data.examples import TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.precision import (
    HYSTERESIS,
    bf16_possible,
    bf16_speedup,
    chosen_precision,
)

LEAST_PACK = 4
"""Lanes of an automatic pack where memory allows: the searcher proposes in packs, and trials of a
study differ in depth, so that sharing the trunk and the batches pays more than the probe, whose
lanes all start at the lowest layer, can show."""

GAIN = 0.05
"""A size within this share of the best one's samples/s is as good: the smaller one lets the
searcher learn sooner."""

MOST_LANES = 64
STEPS, REPEATS = 2, 3
"""Timed steps of a repeat, and repeats."""

WARM_STEPS = 3
"""Steps before: on a GPU the first runs eagerly, the second is captured."""

LIMIT_S = 20.0
"""Seconds after which no further step is taken."""


@dataclass(frozen=True)
class Question:
    """What a study leaves open.

    Attributes:
        pack: Its pack size, or None for "auto".
        precision: `fp32` or `bf16`, or None for "auto".
        largest: Lanes that fit into memory, at least 1.
    """

    pack: int | None
    precision: str | None
    largest: int

    @property
    def open(self) -> bool:
        """Whether there is something to find out."""
        return self.pack is None or self.precision is None


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        pack_size: Lanes of a pack.
        precision: `fp32` or `bf16`.
        step_seconds: Median seconds of an optimizer step by lanes; {} where none was timed.
        rows: Examples per lane in the steps that were timed.
        bf16_speedup: Over fp32, or None where it was not tried.
        seconds: What finding out took.
        complete: Whether the time sufficed for all that was to be tried.
        largest: Lanes that fit into memory, by the memory model.
    """

    pack_size: int
    precision: str
    step_seconds: Mapping[int, float] = field(default_factory=dict)
    rows: int = 0
    bf16_speedup: float | None = None
    seconds: float = 0.0
    complete: bool = True
    largest: int = 0

    @property
    def samples_per_second(self) -> dict[int, float]:
        """Of all lanes together, by lanes."""
        return {k: k * self.rows / seconds for k, seconds in self.step_seconds.items()}

    def to_dict(self) -> dict[str, Any]:
        """As stored with the study: choices, timings, and the margins they were made with."""
        return {
            "pack_size": self.pack_size,
            "precision": self.precision,
            "step_seconds": {str(k): round(v, 6) for k, v in self.step_seconds.items()},
            "samples_per_second": {
                str(k): round(v, 2) for k, v in self.samples_per_second.items()
            },
            "bf16_speedup": None if self.bf16_speedup is None else round(self.bf16_speedup, 3),
            "seconds": round(self.seconds, 2),
            "complete": self.complete,
            "largest_pack": self.largest,
            "margins": {"pack_gain": GAIN, "bf16_speedup": HYSTERESIS, "limit_seconds": LIMIT_S},
        }

    def sentence(self) -> str:
        """One line on what was chosen and why."""
        speeds = ", ".join(f"{k}: {v:.0f}" for k, v in self.samples_per_second.items())
        why = f" (samples/s by lanes: {speeds})" if speeds else ""
        text = f"packs of {self.pack_size}{why}, {self.precision}"
        if self.bf16_speedup is not None:
            text += f" (bf16 is {self.bf16_speedup:.2f}x as fast, {HYSTERESIS:g}x are asked for)"
        cut = "" if self.complete else "; the time did not suffice for more"
        return f"calibrated in {self.seconds:.0f} s: {text}{cut}"


def calibrate(
    trainer: Trainer,
    data: TaskData,
    configuration: Configuration,
    question: Question,
    *,
    go_on: Callable[[], bool],
    timed: bool = False,
) -> Calibration:
    """Answer what a study leaves open; what it says itself is not tried.

    Args:
        trainer: The study's, in fp32 where the precision is open.
        data: The study's.
        configuration: What every lane trains.
        question: What is open.
        go_on: Asked before every step; False ends it with what there is.
        timed: Whether packs are timed although their size is given.
    """
    clock = _Clock(go_on)
    precision = question.precision or "fp32"
    probe = _Probe(_probing(trainer, data, precision), configuration, clock)
    largest = question.largest if question.pack is None else question.pack
    sizes = probe.sizes(largest) if question.pack is None or timed else {}
    pack, speedup = question.pack or chosen_size(sizes, question.largest), None
    if question.precision is None and bf16_possible(trainer.device) and clock.more():
        other = _Probe(_probing(trainer, data, "bf16"), configuration, clock)
        found = probe.precisions(pack, other)
        if found is not None:
            speedup, precision = found[0], chosen_precision(*found)
    return Calibration(
        pack_size=pack,
        precision=precision,
        step_seconds=sizes,
        rows=trainer.settings.batch_size,
        bf16_speedup=speedup,
        seconds=clock.seconds,
        complete=not clock.cut,
        largest=question.largest,
    )


def _probing(trainer: Trainer, data: TaskData, precision: str) -> Trainer:
    steps = WARM_STEPS + STEPS * REPEATS
    rows = middling_batch(trainer)
    return steady_trainer(trainer, data, rows, precision=precision, steps=steps)


class _Clock:
    """The time that a calibration may take.

    Attributes:
        cut: Whether something was left out for want of it.
    """

    def __init__(self, go_on: Callable[[], bool]) -> None:
        self._go_on, self._began, self.cut = go_on, time.monotonic(), False

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def more(self) -> bool:
        """Whether there is time for another step."""
        self.cut = self.cut or self.seconds >= LIMIT_S or not self._go_on()
        return not self.cut


def chosen_size(step_seconds: Mapping[int, float], largest: int) -> int:
    """The smallest size nearly as good as the best, but `LEAST_PACK` where that fits."""
    least = min(LEAST_PACK, largest)
    speeds = {lanes: lanes / seconds for lanes, seconds in step_seconds.items() if lanes >= least}
    if not speeds:
        return least
    best = max(speeds.values())
    return min(lanes for lanes, speed in speeds.items() if speed >= (1.0 - GAIN) * best)


class _Probe:
    """Runs packs of one configuration over the first steps of a study's data."""

    def __init__(self, trainer: Trainer, configuration: Configuration, clock: _Clock) -> None:
        self._trainer, self._configuration, self._clock = trainer, configuration, clock

    def sizes(self, largest: int) -> dict[int, float]:
        """Median seconds of a step by lanes: doubled until that gains nothing."""
        timed: dict[int, list[float]] = {}
        runs: dict[int, PackRun] = {}
        for lanes in _doubling(largest):
            if not self._clock.more():
                break
            try:
                run, taken = self._first(lanes)
            except TrialError:  # the memory model was too hopeful: nothing larger is tried
                break
            if not taken:
                break
            runs[lanes], timed[lanes] = run, taken
            if lanes > LEAST_PACK and not _gained(timed, lanes):
                break
        for _ in range(REPEATS - 1):
            for lanes in list(timed):
                try:
                    timed[lanes] += self.steps(runs[lanes], STEPS)
                except TrialError:  # beside the other sizes there is no room for it
                    del timed[lanes], runs[lanes]
        return {lanes: median(seconds) for lanes, seconds in timed.items()}

    def precisions(self, lanes: int, other: "_Probe") -> tuple[float, tuple[float, float]] | None:
        """Speed-up and mean losses of the other probe's precision, steps taken in turns.

        None where it cannot be run, or time did not suffice for one turn of each.
        """
        own: list[float] = []
        others: list[float] = []
        try:
            mine, theirs = self._begun(lanes), other._begun(lanes)
            self.steps(mine, WARM_STEPS)
            other.steps(theirs, WARM_STEPS)
            for _ in range(REPEATS):
                own += self.steps(mine, STEPS)
                others += other.steps(theirs, STEPS)
        except TrialError:
            return None
        both = min(len(own), len(others))
        if both < STEPS:
            return None
        steps = WARM_STEPS + both
        losses = _mean_loss(mine, steps), _mean_loss(theirs, steps)
        return bf16_speedup(own[:both], others[:both]), losses

    def _begun(self, lanes: int) -> PackRun:
        return self._trainer.start([Lane(n, self._configuration) for n in range(lanes)])

    def _first(self, lanes: int) -> tuple[PackRun, list[float]]:
        """A pack and its first repeat; where time is short, its last step of warming up."""
        run = self._begun(lanes)
        warm = self.steps(run, WARM_STEPS)
        return run, self.steps(run, STEPS) or warm[-1:]

    def steps(self, run: PackRun, count: int) -> list[float]:
        """Seconds of each of the next steps, as far as there is time."""
        if not self._clock.more():
            return []
        return timed_steps(run, count, self._trainer.device, go_on=self._clock.more)


def _doubling(largest: int) -> Iterator[int]:
    lanes = 1
    while lanes <= min(largest, MOST_LANES):
        yield lanes
        lanes *= 2


def _gained(timed: Mapping[int, Sequence[float]], lanes: int) -> bool:
    """Whether the newest size is better than the best before it by more than the margin."""
    speeds = {k: k / median(seconds) for k, seconds in timed.items()}
    before = max(speed for k, speed in speeds.items() if k < lanes)
    return speeds[lanes] > (1.0 + GAIN) * before


def _mean_loss(run: PackRun, steps: int) -> float:
    """The first lane's mean training loss of the first steps; nan where one was not finite."""
    points = [point for point in next(iter(run.drain_curve().values())) if point.step <= steps]
    values = [float("nan") if point.value is None else point.value for point in points]
    return fmean(values) if values else float("nan")
