"""What the tuner needs of whatever trains its packs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autopeft.configuration import Configuration
from autopeft.study.confirmation import Opening
from autopeft.study.records import Measurement

LOST, OUT_OF_MEMORY, TIMEOUT, ERROR = "lost", "out-of-memory", "timeout", "error"
"""Causes with which an attempt ends; "diverged" and "infeasible" are found in what it measures."""

DISK = "disk"
"""What a runner says of a full or broken disk: no cause, as the trial is tried again for nothing
but space."""


@dataclass(frozen=True)
class Result:
    """One lane at a rung.

    Attributes:
        number: The trial's number.
        values: Validation metrics by name; empty where the lane diverged.
        diverged: Whether its weights or predictions are not finite.
    """

    number: int
    values: Mapping[str, float]
    diverged: bool


class Run(Protocol):
    """One pack in training.

    Any call raises TrialError where the pack or its runner failed; then the run is over.
    """

    @property
    def step(self) -> int:
        """Optimizer steps taken, of the full budget."""

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """Train up to a step; False where `on_step` ended it before.

        `on_step` gets the steps taken, of some steps at least, and may be called again with the
        same number. Where it says False, the run stands still once `train` has returned, a few
        steps later at most; `train` goes on from there.
        """

    def measure(self, opening: Opening | None = None) -> list[Result]:
        """Every lane on the validation split, by trial number.

        Args:
            opening: The record of an opening of the test split: then on that instead.
        """

    def curve(self) -> dict[int, list[Measurement]]:
        """Points of every lane's training loss since the last call, by trial number."""

    def save(self, folder: Path) -> None:
        """Write every lane's state to its `state_path` in a folder.

        Where the folder cannot be written (OSError, OutputError), the run is as it was before.
        """

    def profile(self, number: int) -> dict[str, Any]:
        """What the training of a lane took so far, packs before this one included."""


class Runner(Protocol):
    """Trains packs on one device, one at a time; used by one thread at a time."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Where it runs: `{"pid", "host", "device"}`, plain JSON."""

    def probe(self, configuration: Configuration) -> dict[str, Any]:
        """What a configuration costs by itself, measured in a few steps; plain JSON.

        The study's measured metrics by name, and what else `autopeft.execution.probe` tells.

        Raises:
            TrialError: It does not run on this device, by itself.
        """

    def start(
        self,
        lanes: Sequence[tuple[int, Configuration]],
        *,
        resume: Mapping[int, Path],
        waited: Mapping[int, float],
        replicate: int = 0,
        micro_batch_size: int | None = None,
    ) -> Run:
        """A pack of these (trial number, configuration) lanes; a run before it is over.

        Args:
            lanes: At least one.
            resume: File with the state of every lane, at one common step, by trial number; empty
                to start anew.
            waited: Seconds that every lane has waited for its pack, for its profile.
            replicate: Of the study's seed: 0 in a search, others in a confirmation.
            micro_batch_size: Examples per forward pass and lane, where the study's own do not fit
                into memory; the optimizer's batch stays what it is.

        Raises:
            TrialError: It cannot be started.
            AutopeftError: The runner itself cannot be.
        """

    def last_lines(self) -> str | None:
        """The end of what the runner wrote to its log; None where it has none of its own."""


class Executor(Protocol):
    """The runners of one sitting.

    Attributes:
        apart: Whether they are other processes, so that the coordinator's own is never busy.
    """

    apart: bool

    @property
    def runners(self) -> Sequence[Runner]:
        """One per device; each may train a pack at the same time as the others."""

    def attend(self, call: Callable[[], object]) -> None:
        """Call this every second or so while a runner is waited for (where they are apart)."""

    def close(self) -> None:
        """End the runners; what they have not saved is lost."""


def state_path(folder: Path, number: int) -> Path:
    """Where a lane's state lies."""
    return folder / f"trial-{number:05d}.safetensors"
