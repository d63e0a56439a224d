"""Why packs fail, and what is tried then.

| cause         | a pack of several               | a lone trial                                |
| ------------- | ------------------------------- | ------------------------------------------- |
| out-of-memory | its halves                      | half as many rows at once, down to one      |
| lost          | again; then its halves          | again, three times in all                   |
| timeout       | its halves                      | again, twice in all                         |
| error         | its halves                      | failed                                      |

A lone trial for which nothing is left to try has failed. Halving finds the lane whose fault it is;
the others go on. "error" and "diverged" count against a configuration, all else against the
machine.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from autopeft.errors import AutopeftError, TrialError
from autopeft.execution.base import ERROR, LOST, OUT_OF_MEMORY, TIMEOUT
from autopeft.study.records import TrialRecord

AGAINST_THE_CONFIGURATION = ("diverged", ERROR)
"""Causes that a searcher is told of as bad news about a configuration."""

TRIES_OF_A_PACK = {LOST: 2}
TRIES_OF_A_TRIAL = {LOST: 3, TIMEOUT: 2}
"""How often the same is tried for a cause, the first time counted; once where it is not named."""

IN_A_ROW = 3
"""Lone trials that may fail one after the other, by other causes than their size, before the fault
is held to be elsewhere."""


@dataclass(frozen=True)
class Failure:
    """How an attempt ended.

    Attributes:
        cause: `lost`, `out-of-memory`, `timeout` or `error`.
        message: One line.
        log: The runner's last lines, or None.
    """

    cause: str
    message: str
    log: str | None = None

    @classmethod
    def of(cls, error: Exception, log: str | None) -> "Failure":
        """The failure that an error tells of."""
        cause = error.cause if isinstance(error, TrialError) else ERROR
        message = (str(error).splitlines() or [type(error).__name__])[0]
        return cls(cause, message, log or None)


@dataclass
class Job:
    """A pack to be trained, and what it has been through.

    Attributes:
        trials: Its lanes.
        micro_batch_size: Examples per forward pass and lane, or None for the study's.
        tries: How often it failed, by cause.
    """

    trials: list[TrialRecord]
    micro_batch_size: int | None = None
    tries: Counter[str] = field(default_factory=Counter)

    @property
    def numbers(self) -> list[int]:
        """Of its trials."""
        return [trial.number for trial in self.trials]

    @property
    def shown(self) -> str:
        """Its trials, for people."""
        return ", ".join(str(number) for number in self.numbers)


def next_jobs(job: Job, failure: Failure, *, micro_batch_size: int) -> list[Job]:
    """What is to be tried after a failure, in this order; nothing where a lone trial has failed.

    Args:
        job: What failed; its count of tries goes up.
        failure: How.
        micro_batch_size: The study's.
    """
    job.tries[failure.cause] += 1
    alone = len(job.trials) == 1
    most = (TRIES_OF_A_TRIAL if alone else TRIES_OF_A_PACK).get(failure.cause, 1)
    if job.tries[failure.cause] < most:
        return [job]
    if not alone:
        middle = len(job.trials) // 2
        return [Job(job.trials[:middle]), Job(job.trials[middle:])]
    rows = job.micro_batch_size or micro_batch_size
    if failure.cause == OUT_OF_MEMORY and rows > 1:
        return [Job(job.trials, -(-rows // 2))]
    return []


def described(job: Job, failure: Failure, then: Sequence[Job]) -> str:
    """One line on a pack that failed and is tried again."""
    told = f"trials {job.shown}: {failure.message}"
    if len(then) > 1:
        return f"{told}; halving the pack"
    if then and then[0].micro_batch_size != job.micro_batch_size:
        return f"{told}; trying {then[0].micro_batch_size} rows at once"
    return f"{told}; trying again"


class FailuresInARow:
    """Tells when the fault is elsewhere than in the trials."""

    def __init__(self) -> None:
        self._count = 0

    def went_well(self) -> None:
        """Something was trained: begin to count anew."""
        self._count = 0

    def failed(self, failure: Failure) -> None:
        """A lone trial has failed for good.

        Raises:
            AutopeftError: `IN_A_ROW` have.
        """
        self._count += failure.cause in (ERROR, LOST, TIMEOUT)
        if self._count < IN_A_ROW:
            return
        what = "an error" if failure.cause == ERROR else f"cause {failure.cause!r}"
        raise AutopeftError(
            f"{self._count} trials in a row failed with {what}, the last: {failure.message}",
            hint="mend the cause; the same command goes on after these trials",
        )
