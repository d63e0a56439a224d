"""Saved lane states of a cohort: a folder per save of a pack, complete or absent.

Packs of a cohort are formed anew at every rung, so states are looked up by trial: of each, the
newest one counts, whatever pack wrote it. With every save lie the sums of its files, by which a
sitting sees at its start what a power failure has torn.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock

from autopeft.execution.base import Run, state_path
from autopeft.study.disk import sync, writing

STATES = "states"
"""Within an output folder; holds a folder for every study that has trained there."""

_SAVE = re.compile(r"step-(\d{8})-[0-9a-f]{8}")
_COHORT = "cohort-{:05d}"
_SUMS = "sums.json"
_CHUNK_BYTES = 1 << 20
_DROPPING = Lock()
"""Packs that are trained side by side may have been saved together before."""


@dataclass(frozen=True)
class SavedLane:
    """One lane's newest state.

    Attributes:
        step: Optimizer steps that it has taken.
        path: Its file.
    """

    step: int
    path: Path


class CohortStates:
    """The states of one cohort's lanes.

    Args:
        root: The study's folder of lane states.
        cohort: The cohort's number.
    """

    def __init__(self, root: Path, cohort: int) -> None:
        self._folder = root / _COHORT.format(cohort)

    def save(self, run: Run, numbers: Sequence[int]) -> None:
        """Save the lanes of a run; older states of theirs go once the new ones are complete.

        Raises:
            TrialError: The runner failed.
            OutputError: There is no room, here or where the runner is; the run is as it was.
        """
        target = self._folder / f"step-{run.step:08d}-{_digest(numbers)}"
        with writing(self._folder):
            if not target.exists():  # the same lanes at the same step are the same states
                self._write(run, target)
            with _DROPPING:
                for other in self._folder.glob("step-*"):
                    if other != target and _SAVE.fullmatch(other.name):
                        _drop(other, numbers)

    def _write(self, run: Run, target: Path) -> None:
        """All files of a save reach the disk before its name does."""
        partial = target.with_suffix(".partial")  # one that a kill left goes with the cohort
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            run.save(partial)
            files = sorted(partial.iterdir())
            (partial / _SUMS).write_text(json.dumps({each.name: _sum(each) for each in files}))
            for each in (*files, partial / _SUMS, partial):
                sync(each)
            os.replace(partial, target)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk has no room for half a save
            raise
        sync(self._folder)

    def newest(self, number: int) -> SavedLane | None:
        """The newest state of a trial, or None."""
        found = [
            SavedLane(int(match[1]), state_path(folder, number))
            for folder in self._folder.glob("step-*")
            if (match := _SAVE.fullmatch(folder.name)) and state_path(folder, number).exists()
        ]
        return max(found, key=lambda saved: saved.step, default=None)

    def drop_torn(self) -> dict[int, int]:
        """Remove states that are not what was saved: after a power failure, or on a failing disk.

        Returns:
            The step of each, by trial number; whether an older state is left, `newest` tells.
        """
        torn: dict[int, int] = {}
        for number in self._numbers():
            while (saved := self.newest(number)) and not _is_whole(saved.path):
                torn.setdefault(number, saved.step)
                _drop(saved.path.parent, [number])
        return torn

    def _numbers(self) -> list[int]:
        """Of all trials that have a state."""
        files = self._folder.glob("step-*/trial-*.safetensors")
        return sorted({int(path.stem.partition("-")[2]) for path in files})

    def clear(self) -> None:
        """Remove them all."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _digest(numbers: Sequence[int]) -> str:
    """Tells the saves of different lanes at one step apart, in a name that is never too long."""
    return f"{zlib.crc32(','.join(map(str, sorted(numbers))).encode()):08x}"


def _drop(folder: Path, numbers: Sequence[int]) -> None:
    """Remove the trials' files from an older save, and the save when nothing is left of it."""
    for number in numbers:
        for path in folder.glob(f"{state_path(folder, number).stem}.*"):
            path.unlink()
    if {path.name for path in folder.iterdir()} <= {_SUMS}:
        shutil.rmtree(folder)


def _is_whole(state: Path) -> bool:
    """Whether a state, and what lies beside it under its name, is as it was saved."""
    try:
        sums = json.loads((state.parent / _SUMS).read_text())
        own = {name: kept for name, kept in sums.items() if Path(name).stem == state.stem}
        return state.name in own and all(
            _sum(state.parent / name) == kept for name, kept in own.items()
        )
    except (OSError, ValueError, AttributeError):  # the sums themselves are torn or gone
        return False


def _sum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total = zlib.crc32(chunk, total)
    return total


def keep_cohorts(root: Path, cohorts: Collection[int]) -> None:
    """Remove the states of all other cohorts: those that ended just before a kill."""
    kept = {_COHORT.format(cohort) for cohort in cohorts}
    for folder in root.glob("cohort-*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def states_folder(output_dir: Path, created_at: datetime) -> Path:
    """The lane states of one study within an output folder.

    The moment of its creation tells it apart from every other study that may use the folder: of
    another name, in another database, or of the same name after it was deleted.
    """
    return output_dir / STATES / f"{created_at:%Y%m%dT%H%M%S%f}"


def remove_states(output_dir: Path, created_at: datetime) -> None:
    """Remove all lane states of a study."""
    shutil.rmtree(states_folder(output_dir, created_at), ignore_errors=True)
