"""What the tuner needs of whatever trains its packs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autopeft.configuration import Configuration
from autopeft.study.confirmation import Opening
from autopeft.study.records import Measurement


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
    """One pack in training."""

    @property
    def step(self) -> int:
        """Optimizer steps taken, of the full budget."""

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """Train up to a step; False where `on_step` ended it before."""

    def measure(self, opening: Opening | None = None) -> list[Result]:
        """Every lane on the validation split, by trial number.

        Args:
            opening: The record of an opening of the test split: then on that instead.
        """

    def curve(self) -> dict[int, list[Measurement]]:
        """Points of every lane's training loss since the last call, by trial number."""

    def save(self, folder: Path) -> None:
        """Write every lane's state to its `state_path` in a folder."""

    def profile(self, number: int) -> dict[str, Any]:
        """What the training of a lane took so far, packs before this one included."""


class Runner(Protocol):
    """Trains packs."""

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
    ) -> Run:
        """A pack of these (trial number, configuration) lanes.

        Args:
            lanes: At least one.
            resume: File with the state of every lane, at one common step, by trial number; empty
                to start anew.
            waited: Seconds that every lane has waited for its pack, for its profile.
            replicate: Of the study's seed: 0 in a search, others in a confirmation.
        """


def state_path(folder: Path, number: int) -> Path:
    """Where a lane's state lies."""
    return folder / f"trial-{number:05d}.safetensors"
