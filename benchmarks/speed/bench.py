"""A model with its data: makes the arms that scenarios are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from autopeft.configuration import Configuration
from autopeft.training.data.examples import TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import Trainer
from benchmarks.speed import trials
from benchmarks.speed.lanes import Ours, lane_turns, trainer_of
from benchmarks.speed.lines import Fact, Line
from benchmarks.speed.measuring import Arm, Part, Turns, finished
from benchmarks.speed.reference import Recipe, run_reference
from benchmarks.speed.shapes import Subject


@dataclass(frozen=True)
class Plan:
    """What a scenario measures.

    Attributes:
        arms: What is run.
        lines: What is computed from it.
        skipped: Lines that cannot be, and why.
        notes: What a reader should know.
    """

    arms: tuple[Arm, ...]
    lines: tuple[Line | Fact, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of_bars(self) -> "Plan":
        """Only the lines that have a bar, and the arms that they need (facts may need any)."""
        lines = tuple(line for line in self.lines if line.bar is not None)
        ratios = [line for line in lines if isinstance(line, Line)]
        if len(ratios) < len(lines):
            return replace(self, lines=lines)
        needed = {work.arm for line in ratios for work in (line.before, line.after)}
        return replace(self, arms=tuple(a for a in self.arms if a.name in needed), lines=lines)


class Bench:
    """A model with its data: makes the parts of arms.

    Args:
        subject: The model.
        data: Its rows.
    """

    def __init__(self, subject: Subject, data: TaskData) -> None:
        self.subject, self.data = subject, data
        self.anatomy = subject.backbone.anatomy

    def frozen_in(self, dtype: torch.dtype) -> "Bench":
        """The same, the model's weights held in another type on both sides."""
        return Bench(self.subject.frozen_in(dtype), self.data)

    def warm_up(self) -> None:
        """A few steps of both sides, so that nothing is measured that happens once a process."""
        one = trials.lora(self.anatomy, range(len(self.anatomy.layers)))
        run_reference(self.subject, self.data, one, Recipe(max_steps=2, evaluate=False))
        ours = Ours(max_steps=2, evaluate=False)
        trainer = trainer_of(self.subject, self.data, ours)
        finished(lane_turns(self.subject, trainer, [Lane(0, one)], ours))

    def reference(
        self, name: str, configurations: Mapping[int, Configuration], recipe: Recipe
    ) -> Arm:
        """HF Trainer and peft, trial by trial."""

        def part(number: int, configuration: Configuration) -> Part:
            def run(repeat: int) -> Turns:
                yield
                return run_reference(self.subject, self.data, configuration, recipe)

            return Part(f"trial {number}", (number,), run)

        return Arm(name, tuple(part(*item) for item in configurations.items()))

    def packed(
        self,
        name: str,
        configurations: Mapping[int, Configuration],
        ours: Ours,
        *,
        size: int,
        warm: bool = False,
        abreast: str = "",
    ) -> Arm:
        """Packs of at most `size` lanes.

        One trainer serves an arm's repeat, as it serves a search; so packs after the first find
        in its cache what was left there. Where `warm`, every pack is trained once unmeasured.
        """
        groups = trials.packs(configurations, size, self.anatomy)
        trainers: dict[int, Trainer] = {}

        def part(lanes: Sequence[Lane]) -> Part:
            def run(repeat: int) -> Turns:
                if repeat not in trainers:
                    trainers.clear()
                    trainers[repeat] = trainer_of(self.subject, self.data, ours)
                if warm:
                    finished(lane_turns(self.subject, trainers[repeat], lanes, ours))
                return (yield from lane_turns(self.subject, trainers[repeat], lanes, ours))

            numbers = tuple(lane.number for lane in lanes)
            return Part(f"trials {','.join(map(str, numbers))}", numbers, run)

        return Arm(name, tuple(part(lanes) for lanes in groups), abreast)
