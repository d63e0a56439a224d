"""Saved lane states of a pack: a folder per step, complete or absent."""

import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from autopeft.execution.base import Run, state_path


class PackStates:
    """The states of one pack's lanes.

    Args:
        root: The study's folder of lane states.
        pack: The pack's number.
    """

    def __init__(self, root: Path, pack: int) -> None:
        self._folder = root / f"pack-{pack:05d}"

    def save(self, run: Run) -> None:
        """Save every lane of a run; older steps are removed once the new one is complete."""
        target = self._folder / f"step-{run.step:08d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        run.save(partial)
        shutil.rmtree(target, ignore_errors=True)  # of other lanes, or of this very step
        os.replace(partial, target)
        for other in self._folder.iterdir():
            if other != target:
                shutil.rmtree(other)

    def latest(self, numbers: Sequence[int]) -> Path | None:
        """The newest folder that has a state of all these trials, or None."""
        steps = sorted(self._folder.glob("step-????????"), reverse=True)
        for step in steps:
            if all(state_path(step, number).exists() for number in numbers):
                return step
        return None

    def clear(self) -> None:
        """Remove them all."""
        shutil.rmtree(self._folder, ignore_errors=True)


def states_folder(output_dir: Path, created_at: datetime) -> Path:
    """The lane states of one study within an output folder.

    The moment of its creation tells it apart from every other study that may use the folder: of
    another name, in another database, or of the same name after it was deleted.
    """
    return output_dir / "states" / f"{created_at:%Y%m%dT%H%M%S%f}"


def remove_states(output_dir: Path, created_at: datetime) -> None:
    """Remove all lane states of a study."""
    shutil.rmtree(states_folder(output_dir, created_at), ignore_errors=True)
