"""Records of a confirmation: chosen trials trained again with other seeds, and the test split.

The search's own result (replicate 0) chose the trials, so it is lucky on the whole and never one
of the seeds that confirm them: these are replicates 1, 2, ... of the study's seed. The test split
is opened for trials that are confirmed, and every opening leaves a record.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from autopeft.study.records import ObjectiveFrame, TrialState

FIRST_REPLICATE = 1
"""Replicate 0 is the search's."""

LEVEL = 0.95
"""Of all intervals, and of what counts as significant."""

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

    def plain(self) -> dict[str, Any]:
        """All of it as plain JSON, for another process; see `of`."""
        return {**asdict(self), "at": self.at.isoformat()}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Opening":
        """What `plain` gave."""
        lists = {key: tuple(plain[key]) for key in ("trials", "replicates")}
        return cls(**{**plain, **lists, "at": datetime.fromisoformat(plain["at"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as people are shown it."""
        return {
            "at": self.at.isoformat(),
            "by": self.by,
            "trials": list(self.trials),
            "seeds": list(self.replicates),
            "again": self.again,
        }


# -- what the runs show, see `autopeft.searchers.confirmed` ---------------------------------------


class Mark(StrEnum):
    """What the seeds show of a member against the best baseline."""

    BETTER = "better"
    WORSE = "worse"
    UNSHOWN = "not significant"
    UNTESTED = "not tested"


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        mean: In the metric's unit.
        sd: Sample standard deviation; None for one seed.
        low: Lower end of the interval; None for one seed.
        high: Its upper end.
        n: Seeds.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def reach(self) -> float:
        """Half the interval's width: an error bar's length; 0 for one seed."""
        return 0.0 if self.high is None else self.high - self.mean

    def shown(self, *, signed: bool = False) -> str:
        """`0.651 (0.639 to 0.663)`; a difference has its sign."""
        form = "+.4f" if signed else ".4f"
        if self.low is None or self.high is None:
            return f"{self.mean:{form}} (one seed)"
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        interval = None if self.low is None else [self.low, self.high]
        return {"mean": self.mean, "sd": self.sd, "interval": interval, "n": self.n}


@dataclass(frozen=True)
class Difference:
    """A member minus the best baseline, paired by seed.

    Attributes:
        over: Mean, deviation and interval of the differences.
        p: Of the paired t test, two-sided; None where it cannot be made.
        adjusted: The same after Holm's correction over the members compared.
        mark: What it shows.
    """

    over: Mean
    p: float | None
    adjusted: float | None
    mark: Mark

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            **self.over.to_dict(),
            "p": self.p,
            "p_holm": self.adjusted,
            "mark": self.mark.value,
        }


@dataclass(frozen=True)
class Seen:
    """One trial on one split.

    Attributes:
        by_seed: Its quality by replicate.
        over: The same over the seeds.
        difference: From the best baseline; None of the baseline itself, and without one.
    """

    by_seed: Mapping[int, float]
    over: Mean
    difference: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        own = None if self.difference is None else self.difference.to_dict()
        values = {str(seed): value for seed, value in sorted(self.by_seed.items())}
        return {**self.over.to_dict(), "by_seed": values, "difference": own}


@dataclass(frozen=True)
class Confirmed:
    """One trial over its seeds.

    Attributes:
        trial: Its number.
        reference: Whether it is the baseline that the others are held against.
        seeds: Replicates that have a result.
        diverged: How many of them diverged; they count as the constant predictor.
        missing: Replicates without a result yet, or that the machine failed, with what is known.
        validation: On the validation split; None before the first result.
        test: On the test split; None where it was not opened for it.
    """

    trial: int
    reference: bool
    seeds: tuple[int, ...]
    diverged: int
    missing: Mapping[int, str]
    validation: Seen | None
    test: Seen | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "trial": self.trial,
            "reference": self.reference,
            "seeds": list(self.seeds),
            "diverged": self.diverged,
            "missing": {str(seed): why for seed, why in self.missing.items()},
            "validation": None if self.validation is None else self.validation.to_dict(),
            "test": None if self.test is None else self.test.to_dict(),
        }


@dataclass(frozen=True)
class Confirmation:
    """What is known of a study beyond its own seed.

    Attributes:
        frame: The quality that is compared.
        reference: Number of the best baseline, where it was trained again; else None.
        trials: By number.
        openings: Of the test split, oldest first.
    """

    frame: ObjectiveFrame
    reference: int | None
    trials: Mapping[int, Confirmed]
    openings: tuple[Opening, ...] = ()

    @property
    def members(self) -> list[Confirmed]:
        """All trials but the reference, by number."""
        return [each for each in self.trials.values() if not each.reference]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "metric": self.frame.name,
            "level": LEVEL,
            "reference": self.reference,
            "trials": [each.to_dict() for each in self.trials.values()],
            "openings": [opening.to_dict() for opening in self.openings],
        }
