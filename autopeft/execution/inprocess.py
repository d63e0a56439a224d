"""Packs in this process: for laptops, debugging and tests."""

import copy
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autopeft.configuration import Configuration
from autopeft.counting import training_flops
from autopeft.execution.base import Result, Run, Runner, state_path
from autopeft.execution.peak_memory import peak_bytes, reset_peak
from autopeft.execution.probe import SoloProbe
from autopeft.execution.profile import PackFigures, trial_profile
from autopeft.study.confirmation import Opening
from autopeft.study.records import Measurement
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import PackRun, Trainer


class InProcessExecutor:
    """One runner, in this process; see `Executor`.

    Args:
        runner: Trains.
    """

    apart = False

    def __init__(self, runner: Runner) -> None:
        self.runners: Sequence[Runner] = (runner,)

    def attend(self, call: Callable[[], object]) -> None:
        """Nothing: whoever waits here is the one that trains."""

    def close(self) -> None:
        """Nothing is held that does not go with the process."""


class InProcessRunner:
    """Runs packs on the trainer's own device, one at a time.

    Args:
        trainer: Holds backbone and data.
        probe: Measures configurations by themselves; None where a study asks for nothing of it.
    """

    def __init__(self, trainer: Trainer, probe: SoloProbe | None = None) -> None:
        self._trainer, self._probe = trainer, probe

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Runner.identity`."""
        device = str(self._trainer.device)
        return {"pid": os.getpid(), "host": socket.gethostname(), "device": device}

    def probe(self, configuration: Configuration) -> dict[str, Any]:
        """See `Runner.probe`; nothing where a study has no measured metric."""
        if self._probe is None:
            return {}
        self._clear()
        return self._probe.measure(configuration)

    def start(
        self,
        lanes: Sequence[tuple[int, Configuration]],
        *,
        resume: Mapping[int, Path],
        waited: Mapping[int, float],
        replicate: int = 0,
        micro_batch_size: int | None = None,
    ) -> Run:
        """See `Runner.start`."""
        self._clear()
        reset_peak(self._trainer.device)
        began = time.perf_counter()
        states = {number: LaneState.load(path) for number, path in resume.items()}
        before = {
            number: json.loads(_profile(path).read_text()) for number, path in resume.items()
        }
        pack = [Lane(number, configuration) for number, configuration in lanes]
        trainer = self._trainer_of(micro_batch_size)
        run = trainer.start(pack, replicate=replicate, states=states or None)
        loading_s = time.perf_counter() - began
        return InProcessRun(trainer, run, Start(loading_s, waited, before))

    def last_lines(self) -> None:
        """None: it writes where this process writes."""

    def _trainer_of(self, micro_batch_size: int | None) -> Trainer:
        """The trainer, with fewer rows at once where that is asked for; then nothing is kept."""
        if micro_batch_size in (None, self._trainer.settings.micro_batch_size):
            return self._trainer
        settings = replace(self._trainer.settings, micro_batch_size=micro_batch_size)
        trainer = copy.copy(self._trainer)
        trainer.settings, trainer.caches = settings, {}
        return trainer

    def _clear(self) -> None:
        if self._trainer.device.type == "cuda":
            torch.cuda.empty_cache()  # a pack that ran out of memory may have left fragments


@dataclass(frozen=True)
class Start:
    """What happened before a pack's first step.

    Attributes:
        loading_s: Seconds for building the pack and restoring its lanes.
        waited: Seconds that every lane waited for it, by trial number.
        before: Profiles of the packs that this one continues, by trial number.
    """

    loading_s: float
    waited: Mapping[int, float]
    before: Mapping[int, Mapping[str, Any]]


class InProcessRun:
    """One pack in this process; see `Run`.

    Args:
        trainer: Holds backbone and data.
        run: The pack.
        start: How it came to be.
    """

    def __init__(self, trainer: Trainer, run: PackRun, start: Start) -> None:
        self._trainer, self._run, self._start = trainer, run, start

    @property
    def step(self) -> int:
        """See `Run.step`."""
        return self._run.step

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """See `Run.train`."""
        return self._run.train(until, on_step=on_step)

    def measure(self, opening: Opening | None = None) -> list[Result]:
        """See `Run.measure`."""
        examples = None if opening is None else self._trainer.test(opening)
        return [
            Result(number, found.values, found.diverged)
            for number, found in sorted(self._run.evaluate(examples).items())
        ]

    def curve(self) -> dict[int, list[Measurement]]:
        """See `Run.curve`."""
        return self._run.drain_curve()

    def save(self, folder: Path) -> None:
        """See `Run.save`."""
        for number, state in self._run.states().items():
            path = state_path(folder, number)
            state.save(path)
            _profile(path).write_text(json.dumps(self.profile(number)))

    def profile(self, number: int) -> dict[str, Any]:
        """See `Run.profile` and `autopeft.execution.profile`."""
        anatomy = self._trainer.backbone.anatomy
        flops = {
            lane.number: training_flops(lane.configuration, anatomy, 1) for lane in self._run.lanes
        }
        return trial_profile(
            self._figures(),
            share=flops[number] / sum(flops.values()),
            waited=self._start.waited.get(number, 0.0),
            before=self._start.before.get(number, {}),
        )

    def _figures(self) -> PackFigures:
        took = self._run.profile
        return PackFigures(
            lanes=len(self._run.lanes),
            optimizer_steps=took.optimizer_steps,
            samples=took.samples,
            tokens=took.tokens,
            train_seconds=took.train_seconds,
            evaluation_seconds=took.evaluation_seconds,
            loading_seconds=self._start.loading_s,
            peak_memory_bytes=peak_bytes(self._trainer.device),
        )


def _profile(state: Path) -> Path:
    """The file beside a lane's state that holds its profile."""
    return state.with_suffix(".json")
