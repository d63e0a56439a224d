"""Records of a confirmation: chosen trials trained again with other seeds, and the test split.

The search's own result (replicate 0) chose the trials, so it is lucky on the whole and never one
of the seeds that confirm them: these are replicates 1, 2, ... of the study's seed. The test split
is opened for trials that are confirmed, and every opening leaves a record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autopeft.study.records import TrialState

FIRST_REPLICATE = 1
"""Replicate 0 is the search's."""

DIVERGED = "diverged"
"""The cause of a failure that is the configuration's own; every other one is the machine's."""


@dataclass(frozen=True)
class ConfirmationRun:
    """One trial's configuration trained at the full budget with one further seed.

    Attributes:
        trial: The trial's number.
        replicate: Of the study's seed, from `FIRST_REPLICATE`.
        state: Waiting, running, completed or failed.
        values: Validation metrics at the end; {} before.
        test: Test metrics, or None where the test split was not opened for it.
        optimizer_steps: Steps taken so far.
        attempts: How often its training was started.
        cause: Why it failed, or None.
        message: One line about the failure, or None.
        profile: What its training took, as of a trial.
        finished_at: When it ended, or None.
    """

    trial: int
    replicate: int
    state: TrialState
    values: Mapping[str, float | None] = field(default_factory=dict)
    test: Mapping[str, float | None] | None = None
    optimizer_steps: int = 0
    attempts: int = 0
    cause: str | None = None
    message: str | None = None
    profile: Mapping[str, Any] = field(default_factory=dict)
    finished_at: datetime | None = None

    @property
    def diverged(self) -> bool:
        """Whether it ended in numbers that are not finite: a result, and a bad one."""
        return self.state is TrialState.FAILED and self.cause == DIVERGED

    @property
    def ended(self) -> bool:
        """Whether it has a result; one that the machine failed has none, and is tried again."""
        return self.state is TrialState.COMPLETED or self.diverged


@dataclass(frozen=True)
class Opening:
    """One opening of the test split, written before any of its rows is read.

    Attributes:
        index: 0, 1, 2, ... within the study.
        at: When.
        by: Who: user@host.
        trials: Whose configurations were to be evaluated, the baseline among them.
        replicates: With which seeds.
        again: Whether the split had been opened before.
    """

    index: int
    at: datetime
    by: str
    trials: tuple[int, ...]
    replicates: tuple[int, ...]
    again: bool

    def covers(self, trial: int, replicate: int) -> bool:
        """Whether a run may be evaluated under it."""
        return trial in self.trials and replicate in self.replicates

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "at": self.at.isoformat(),
            "by": self.by,
            "trials": list(self.trials),
            "seeds": list(self.replicates),
            "again": self.again,
        }
