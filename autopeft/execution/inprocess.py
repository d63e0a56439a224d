"""Packs in this process: for laptops, debugging and tests."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autopeft.configuration import Configuration
from autopeft.execution.base import Result, Run, state_path
from autopeft.methods.counting import training_flops
from autopeft.study.records import Measurement
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import PackRun, Trainer

SUMMED = (
    "optimizer_steps",
    "samples",
    "tokens",
    "train_seconds",
    "evaluation_seconds",
    "pack_train_seconds",
    "pack_evaluation_seconds",
)
"""What adds up over the runs of a trial; the rest of a profile is the last run's."""


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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # a pack that ran out of memory may have left fragments
        states: dict[int, LaneState] = {}
        before: dict[int, Mapping[str, Any]] = {}
        if resume is not None:
            for number, _ in lanes:
                states[number] = LaneState.load(state_path(resume, number))
                before[number] = json.loads(_profile(resume, number).read_text())
        pack = [Lane(number, configuration) for number, configuration in lanes]
        return InProcessRun(
            self._trainer, self._trainer.start(pack, states=states or None), before
        )


class InProcessRun:
    """One pack in this process; see `Run`.

    Args:
        trainer: Holds backbone and data.
        run: The pack.
        before: Profiles of the runs that this one continues, by trial number.
    """

    def __init__(
        self, trainer: Trainer, run: PackRun, before: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self._trainer, self._run, self._before = trainer, run, before

    @property
    def step(self) -> int:
        """See `Run.step`."""
        return self._run.step

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """See `Run.train`."""
        return self._run.train(until, on_step=on_step)

    def measure(self) -> list[Result]:
        """See `Run.measure`."""
        return [
            Result(number, found.values, found.diverged)
            for number, found in sorted(self._run.evaluate().items())
        ]

    def curve(self) -> dict[int, list[Measurement]]:
        """See `Run.curve`."""
        return self._run.drain_curve()

    def save(self, folder: Path) -> None:
        """See `Run.save`."""
        for number, state in self._run.states().items():
            state.save(state_path(folder, number))
            _profile(folder, number).write_text(json.dumps(self.profile(number)))

    def profile(self, number: int) -> dict[str, Any]:
        """See `Run.profile`; the pack's seconds are shared out by closed-form FLOPs."""
        anatomy = self._trainer.backbone.anatomy
        flops = {
            lane.number: training_flops(lane.configuration, anatomy, 1)
            for lane in self._run.pack.lanes
        }
        share = flops[number] / sum(flops.values())
        profile = self._run.profile.to_dict(lanes=len(flops), share=share)
        before = self._before.get(number, {})
        return profile | {name: before.get(name, 0) + profile[name] for name in SUMMED}


def _profile(folder: Path, number: int) -> Path:
    return state_path(folder, number).with_suffix(".json")
