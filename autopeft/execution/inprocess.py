"""Packs in this process: for laptops, debugging and tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autopeft.configuration import Configuration
from autopeft.execution.base import Result, Run, state_path
from autopeft.methods.counting import training_flops
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import PackRun, Trainer


class InProcessRunner:
    """Runs packs on the trainer's own device, one at a time.

    Args:
        trainer: Holds backbone and data.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def start(
        self, lanes: Sequence[tuple[int, Configuration]], *, resume: Path | None = None
    ) -> Run:
        """See `Runner.start`."""
        states = None
        if resume is not None:
            states = {number: LaneState.load(state_path(resume, number)) for number, _ in lanes}
        pack = [Lane(number, configuration) for number, configuration in lanes]
        return InProcessRun(self._trainer, self._trainer.start(pack, states=states))


class InProcessRun:
    """One pack in this process; see `Run`."""

    def __init__(self, trainer: Trainer, run: PackRun) -> None:
        self._trainer, self._run = trainer, run

    @property
    def step(self) -> int:
        """See `Run.step`."""
        return self._run.step

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """See `Run.train`."""
        return self._run.train(until, on_step=on_step)

    def measure(self) -> list[Result]:
        """See `Run.measure`."""
        results = [
            Result(number, found.values, found.diverged, tuple(self._run.training_curve(number)))
            for number, found in sorted(self._run.evaluate().items())
        ]
        self._run.drain_curve()
        return results

    def save(self, folder: Path) -> None:
        """See `Run.save`."""
        for number, state in self._run.states().items():
            state.save(state_path(folder, number))

    def profile(self, number: int) -> dict[str, Any]:
        """See `Run.profile`; the pack's seconds are shared out by closed-form FLOPs."""
        anatomy = self._trainer.backbone.anatomy
        flops = {
            lane.number: training_flops(lane.configuration, anatomy, 1)
            for lane in self._run.pack.lanes
        }
        share = flops[number] / sum(flops.values())
        return self._run.profile.to_dict(lanes=len(flops), share=share)
