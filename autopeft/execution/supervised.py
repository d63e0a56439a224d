"""A runner as its coordinator holds it: spoken to, waited for, ended in time, begun anew.

Whatever a runner dies of ends its pack alone: the next pack finds a new one. One that hangs beyond
its limit is ended with all that it has started. Where the runner is, and how its process came to
be, is its handle's business: a child of this process (`runner_process`), or one on a node of a
cluster (`ray_runners`).
"""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from autopeft.configuration import Configuration
from autopeft.errors import AutopeftError, InterruptedStudyError, OutputError, TrialError
from autopeft.execution.base import DISK, LOST, TIMEOUT, Result, Run
from autopeft.execution.channel import ChannelClosedError, Message
from autopeft.execution.time_limits import Deadline, TimeLimits
from autopeft.study.confirmation import Opening
from autopeft.study.disk import HINT
from autopeft.study.progress import Stopper
from autopeft.study.records import Measurement

logger = logging.getLogger(__name__)

TICK_S = 0.5
"""Between two looks at the clock while a runner is waited for."""

STARTS = 3
"""How often a runner may die while it loads, before its device is given up."""

BETWEEN_STARTS_S = 2.0
"""So long the memory of one that was killed may take to come back."""


class Handle(Protocol):
    """A runner's process, wherever it is.

    Every call may take a while where it is on another machine, and so may be cut off by whoever
    asks the study to end.
    """

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; ChannelClosedError where the runner is gone."""

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None where none came in time; ChannelClosedError likewise."""

    def lend(self, files: Sequence[Path]) -> list[str]:
        """Files of this machine, each as the runner finds it; TrialError where that fails."""

    def saving(self, folder: Path) -> AbstractContextManager[str]:
        """Where the runner is to write files; at the end they are in a folder of this machine."""

    def last_lines(self) -> str:
        """The end of its log."""

    def ending(self) -> TrialError:
        """What it died of; ends it if it has not."""

    def close(self) -> None:
        """Let it end by itself, then make sure."""

    def terminate(self) -> None:
        """End it as `kill` does, and keep the last lines of its log, wherever they are."""

    def kill(self) -> None:
        """End it with all that it has started."""


class Begun(NamedTuple):
    """A runner's process that has begun, and what it is to load."""

    handle: Handle
    request: Mapping[str, Any]


Begin: TypeAlias = Callable[[Callable[[], None]], Begun]
"""Begins a runner's process; calls what it is given every second or so, which may raise."""


@dataclass(frozen=True)
class Terms:
    """How a runner is supervised.

    Attributes:
        begin: Makes its process.
        device: The torch device that it trains on.
        named: What it is called in messages.
        log: Where its log is kept, of which `last_lines` are the end.
        limits: How long it may take.
        stopper: Heard while it is waited for.
    """

    begin: Begin
    device: str
    named: str
    log: Path
    limits: TimeLimits
    stopper: Stopper


class SupervisedRunner:
    """One device's runner, begun when it is first needed and again after it has died.

    Args:
        terms: How.

    Attributes:
        limits: How long it may take.
        attended: Called while it is waited for.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.limits, self._stopper = terms.limits, terms.stopper
        self._handle: Handle | None = None
        self._where: Mapping[str, Any] = {}
        self._spoke = ""
        self.attended: Callable[[], object] = lambda: None

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Runner.identity`; the process is started where there is none."""
        self._living()
        return {**self._where, "device": self._terms.device}

    def probe(self, configuration: Configuration) -> dict[str, Any]:
        """See `Runner.probe`."""
        found: dict[str, Any] = self.ask("probe", configuration=configuration.to_dict())
        return found

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
        lent = self._reached(lambda handle: handle.lend(list(resume.values())))
        step = self.ask(
            "start",
            lanes=[[number, configuration.to_dict()] for number, configuration in lanes],
            resume={str(number): path for number, path in zip(resume, lent, strict=True)},
            waited={str(number): seconds for number, seconds in waited.items()},
            replicate=replicate,
            micro_batch_size=micro_batch_size,
        )
        return SupervisedRun(self, len(lanes), step)

    def last_lines(self) -> str | None:
        """See `Runner.last_lines`."""
        return self._handle.last_lines() if self._handle is not None else self._spoke

    def close(self) -> None:
        """End the process."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    # -- talking ------------------------------------------------------------------------------

    def ask(self, do: str, **what: Any) -> Any:
        """Have the runner do something that is no training, and wait for what it says.

        Raises:
            TrialError: It failed, died or took too long.
            OutputError: It has no room to write.
            InterruptedStudyError: It took too long after a signal.
        """
        self._living()
        self.tell(do, **what)
        deadline = Deadline(self.limits.call_s())
        while (message := self.hear(deadline)) is None or "step" in message:
            pass
        return message["done"]

    def tell(self, do: str, **what: Any) -> None:
        """Send a command; one that cannot be sent shows when the answer is waited for."""
        if self._handle is None:
            raise TrialError("the runner is gone", cause=LOST)
        try:
            self._handle.send({"do": do, **what})
        except ChannelClosedError:
            logger.info("%s hears no more", self._terms.named)

    def hear(self, deadline: Deadline) -> Message | None:
        """What the runner says next, None where it says nothing for a while.

        Raises:
            TrialError: It failed, died, or the deadline is over.
            OutputError: It has no room to write.
            InterruptedStudyError: The study is to end sooner than this.
        """
        message = self._receive()
        self.attended()
        if message is not None:
            if "failed" in message:
                raise self._failed(**message["failed"])
            return message
        if deadline.over():
            self._end(lambda handle: handle.terminate())
            limit = f"no end after {deadline.limit_s:.0f} s"
            raise TrialError(f"the runner was ended: {limit}", cause=TIMEOUT)
        self._heed()
        return None

    def save(self, folder: Path) -> None:
        """Have the lanes of the pack at hand written to a folder of this machine."""
        handle = self._handle
        if handle is None:
            raise TrialError("the runner is gone", cause=LOST)
        try:
            with handle.saving(folder) as there:
                self.ask("save", folder=there)
        except TrialError as error:
            if error.cause == LOST:  # else the next pack would be the one to find out
                self._end(lambda handle: handle.kill())
            raise

    def _reached(self, call: Callable[[Handle], Any]) -> Any:
        """What the process gives; one that cannot be reached is ended."""
        handle = self._living()
        try:
            return call(handle)
        except TrialError:
            self._end(lambda handle: handle.kill())
            raise

    def _heed(self) -> None:
        """Give up what the study can no longer wait for.

        Raises:
            InterruptedStudyError: It is to end sooner than this.
        """
        if self._stopper.overdue:
            self._end(lambda handle: handle.kill())
            raise InterruptedStudyError(
                f"stopped ({self._stopper.reason}) within a step that takes too long",
                hint="the same command goes on from what was saved before",
            )

    def _waited(self) -> None:
        """Called while something far away takes its time."""
        self.attended()
        self._heed()

    def _receive(self) -> Message | None:
        if self._handle is None:
            raise TrialError("the runner is gone", cause=LOST)
        try:
            return self._handle.receive(TICK_S)
        except ChannelClosedError:
            ended = self._handle.ending()
        self._end(lambda handle: handle.kill())
        raise ended

    def _failed(self, cause: str, message: str, *, fatal: bool) -> TrialError | OutputError:
        """The error of a pack that failed; a runner that says it is past help is ended."""
        if fatal:
            self._end(lambda handle: handle.kill())
        if cause == DISK:
            return OutputError(message, hint=HINT)
        return TrialError(message, cause=cause)

    # -- beginning and ending -----------------------------------------------------------------

    def _living(self) -> Handle:
        """The process, loaded and ready.

        Raises:
            AutopeftError: It dies while it loads, whatever is trained.
            OutputError: There is no room for what it writes.
            RunnerAwayError: There is no place for it at the moment.
        """
        for attempt in range(STARTS):
            if self._handle is not None:
                return self._handle
            if attempt:
                time.sleep(BETWEEN_STARTS_S)
            try:
                return self._begun()
            except TrialError as error:
                named = self._terms.named
                logger.warning("%s does not start: %s\n%s", named, error, self.last_lines())
                failure = error
                self._end(lambda handle: handle.kill())
            except OutputError:
                self._end(lambda handle: handle.kill())
                raise
        raise AutopeftError(
            f"{self._terms.named} failed {STARTS} times while it loaded: {failure}",
            hint=f"its log is {self._terms.log}",
        )

    def _begun(self) -> Handle:
        self._handle, request = self._terms.begin(self._waited)
        self.tell("load", **request)
        deadline = Deadline(self.limits.call_s())
        while (message := self.hear(deadline)) is None:
            pass
        self._where = message["done"]
        logger.info("%s: process %s on %s", self._terms.named, *self._where.values())
        return self._handle

    def _end(self, how: Callable[[Handle], None]) -> None:
        if self._handle is not None:
            how(self._handle)
            self._spoke = self._handle.last_lines()
            self._handle = None


class SupervisedRun:
    """A pack in a runner's process; see `Run`.

    Args:
        runner: Trains it.
        lanes: How many.
        step: Where it starts.

    Attributes:
        step: Steps taken, as far as was heard.
    """

    _turns = itertools.count()

    def __init__(self, runner: SupervisedRunner, lanes: int, step: int) -> None:
        self._runner, self._lanes, self.step = runner, lanes, step

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """See `Run.train`."""
        pace = Pace(self._runner.limits, self._lanes, self.step, until)
        turn, goes_on = next(self._turns), True
        self._runner.tell("train", until=until, turn=turn)
        while True:
            message = self._runner.hear(pace.deadline)
            if message is not None:
                self.step = message["step"]
                pace.took(self.step)
                if "done" in message:
                    return bool(message["done"])
            if goes_on and not on_step(self.step):
                goes_on = False
                self._runner.tell("pause", turn=turn)

    def measure(self, opening: Opening | None = None) -> list[Result]:
        """See `Run.measure`."""
        plain = None if opening is None else opening.plain()
        found = self._runner.ask("measure", opening=plain)
        return [Result(n, values, diverged) for n, values, diverged in found]

    def curve(self) -> dict[int, list[Measurement]]:
        """See `Run.curve`."""
        return {
            int(number): [Measurement(**point) for point in points]
            for number, points in self._runner.ask("curve").items()
        }

    def save(self, folder: Path) -> None:
        """See `Run.save`."""
        self._runner.save(folder)

    def profile(self, number: int) -> dict[str, Any]:
        """See `Run.profile`."""
        profile: dict[str, Any] = self._runner.ask("profile", number=number)
        return profile


class Pace:
    """The deadline of a pack in training: from calibration, else from its own first steps.

    Attributes:
        deadline: As it is known so far.
    """

    def __init__(self, limits: TimeLimits, lanes: int, step: int, until: int) -> None:
        self._limits, self._first, self._until = limits, step, until
        limit = limits.training_s(lanes, until - step)
        self._known = limit is not None
        self.deadline = Deadline(limits.call_s() if limit is None else limit)

    def took(self, step: int) -> None:
        """Learn from the steps that were taken."""
        if self._known or step == self._first:
            return
        self._known = True
        self.deadline.over()
        seconds = self.deadline.waited_s / (step - self._first)
        self.deadline = Deadline(self._limits.at_pace(seconds, self._until - step))
