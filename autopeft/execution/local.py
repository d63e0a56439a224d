"""Packs on this machine: one runner process per device, supervised.

A runner holds the backbone for the whole study. Whatever it dies of ends its pack alone: the next
pack finds a new one. One that hangs beyond its limit is ended with all that it has started.
"""

import itertools
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.configuration import Configuration
from autopeft.errors import AutopeftError, InterruptedStudyError, TrialError
from autopeft.execution.base import LOST, OUT_OF_MEMORY, TIMEOUT, Result, Run
from autopeft.execution.channel import ChannelClosedError, Message
from autopeft.execution.runner_log import log_path
from autopeft.execution.runner_process import COMMAND, RunnerProcess
from autopeft.execution.time_limits import Deadline, TimeLimits
from autopeft.study.confirmation import Opening
from autopeft.study.progress import Stopper
from autopeft.study.records import Measurement
from autopeft.training import machine

logger = logging.getLogger(__name__)

TICK_S = 0.5
"""Between two looks at the clock while a runner is waited for."""

STARTS = 3
"""How often a runner may die while it loads, before its device is given up."""

BETWEEN_STARTS_S = 2.0
"""So long the memory of one that was killed may take to come back."""


@dataclass(frozen=True)
class Launch:
    """How runners are made.

    Attributes:
        request: What a runner needs to know of its study, plain JSON; see `worker`.
        devices: A torch device's name per runner.
        folder: The study's artifacts; logs go below it.
        limits: How long a runner may take.
        stopper: Heard while a runner is waited for.
        command: What starts a runner.
    """

    request: Mapping[str, Any]
    devices: Sequence[str]
    folder: Path
    limits: TimeLimits
    stopper: Stopper
    command: Sequence[str] = field(default=COMMAND)


class LocalExecutor:
    """One runner per device; see `Executor`."""

    apart = True

    def __init__(self, launch: Launch) -> None:
        self.runners = [LocalRunner(launch, index) for index in range(len(launch.devices))]

    def attend(self, call: Callable[[], object]) -> None:
        """See `Executor.attend`."""
        for runner in self.runners:
            runner.attended = call

    def close(self) -> None:
        """See `Executor.close`."""
        for runner in self.runners:
            runner.close()


class LocalRunner:
    """One device's runner process, made when it is first needed and again after it has died.

    Args:
        launch: How.
        index: Its place among the study's runners.

    Attributes:
        limits: How long it may take.
        attended: Called while it is waited for.
    """

    def __init__(self, launch: Launch, index: int) -> None:
        self._launch, self._index = launch, index
        self.limits, self._stopper = launch.limits, launch.stopper
        self._log = log_path(launch.folder, index)
        self._process: RunnerProcess | None = None
        self._spoke, self._oom_kills = "", 0
        self.attended: Callable[[], object] = lambda: None

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Runner.identity`; the process is started where there is none."""
        pid = self._living().pid
        device = self._launch.devices[self._index]
        return {"pid": pid, "host": socket.gethostname(), "device": device}

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
        step = self.ask(
            "start",
            lanes=[[number, configuration.to_dict()] for number, configuration in lanes],
            resume={str(number): str(path) for number, path in resume.items()},
            waited={str(number): seconds for number, seconds in waited.items()},
            replicate=replicate,
            micro_batch_size=micro_batch_size,
        )
        return LocalRun(self, len(lanes), step)

    def last_lines(self) -> str | None:
        """See `Runner.last_lines`."""
        return self._process.last_lines() if self._process is not None else self._spoke

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    # -- talking ------------------------------------------------------------------------------

    def ask(self, do: str, **what: Any) -> Any:
        """Have the runner do something that is no training, and wait for what it says.

        Raises:
            TrialError: It failed, died or took too long.
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
        if self._process is None:
            raise TrialError("the runner is gone", cause=LOST)
        self._oom_kills = machine.oom_kills()
        try:
            self._process.send({"do": do, **what})
        except ChannelClosedError:
            logger.info("runner %d hears no more", self._index)

    def hear(self, deadline: Deadline) -> Message | None:
        """What the runner says next, None where it says nothing for a while.

        Raises:
            TrialError: It failed, died, or the deadline is over.
            InterruptedStudyError: The study is to end sooner than this.
        """
        message = self._receive()
        self.attended()
        if message is not None:
            if "failed" in message:
                raise self._failed(**message["failed"])
            return message
        if deadline.over():
            self._end(RunnerProcess.terminate)
            limit = f"no end after {deadline.limit_s:.0f} s"
            raise TrialError(f"the runner was ended: {limit}", cause=TIMEOUT)
        if self._stopper.overdue:
            self._end(RunnerProcess.kill)
            raise InterruptedStudyError(
                f"stopped ({self._stopper.reason}) within a step that takes too long",
                hint="the same command goes on from what was saved before",
            )
        return None

    def _receive(self) -> Message | None:
        if self._process is None:
            raise TrialError("the runner is gone", cause=LOST)
        try:
            return self._process.receive(TICK_S)
        except ChannelClosedError:
            raise self._died(self._process) from None

    def _failed(self, cause: str, message: str, *, fatal: bool) -> TrialError:
        """The error of a pack that failed; a runner that says it is past help is ended."""
        if fatal:
            self._end(RunnerProcess.kill)
        return TrialError(message, cause=cause)

    def _died(self, process: RunnerProcess) -> TrialError:
        how = process.ending()
        self._end(RunnerProcess.kill)
        if "SIGKILL" in how and machine.oom_kills() > self._oom_kills:
            return TrialError(
                "the kernel killed the runner for want of memory", cause=OUT_OF_MEMORY
            )
        return TrialError(f"the runner died: {how}", cause=LOST)

    # -- beginning and ending -----------------------------------------------------------------

    def _living(self) -> RunnerProcess:
        """The process, loaded and ready.

        Raises:
            AutopeftError: It dies while it loads, whatever is trained.
        """
        for attempt in range(STARTS):
            if self._process is not None:
                return self._process
            if attempt:
                time.sleep(BETWEEN_STARTS_S)
            try:
                return self._begun()
            except TrialError as error:
                logger.warning("%s does not start: %s\n%s", self._named, error, self.last_lines())
                failure = error
                self._end(RunnerProcess.kill)
        raise AutopeftError(
            f"{self._named} failed {STARTS} times while it loaded: {failure}",
            hint=f"its log is {self._log}",
        )

    def _begun(self) -> RunnerProcess:
        launch = self._launch
        self._process = RunnerProcess(launch.command, self._log)
        own = {"device": launch.devices[self._index], "index": self._index}
        self.tell("load", **launch.request, **own, runners=len(launch.devices))
        deadline = Deadline(self.limits.call_s())
        while self.hear(deadline) is None:
            pass
        logger.info("%s: process %d", self._named, self._process.pid)
        return self._process

    def _end(self, how: Callable[[RunnerProcess], None]) -> None:
        if self._process is not None:
            how(self._process)
            self._spoke = self._process.last_lines()
            self._process = None

    @property
    def _named(self) -> str:
        return f"the runner on {self._launch.devices[self._index]}"


class LocalRun:
    """A pack in a runner's process; see `Run`.

    Args:
        runner: Trains it.
        lanes: How many.
        step: Where it starts.

    Attributes:
        step: Steps taken, as far as was heard.
    """

    _turns = itertools.count()

    def __init__(self, runner: LocalRunner, lanes: int, step: int) -> None:
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
        self._runner.ask("save", folder=str(folder.absolute()))

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
