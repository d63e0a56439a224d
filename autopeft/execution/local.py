"""Packs on this machine: one runner process per device, supervised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.execution.runner_log import log_path
from autopeft.execution.runner_process import COMMAND, RunnerProcess
from autopeft.execution.supervised import Begun, SupervisedRunner, Terms
from autopeft.execution.time_limits import TimeLimits
from autopeft.study.progress import Stopper

if TYPE_CHECKING:
    from autopeft.execution.spare import Spare


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
        spare: The process of the first runner, where one was begun before.
    """

    request: Mapping[str, Any]
    devices: Sequence[str]
    folder: Path
    limits: TimeLimits
    stopper: Stopper
    command: Sequence[str] = field(default=COMMAND)
    spare: "Spare | None" = None

    def terms(self, index: int) -> Terms:
        """Those of a runner, by its place among the study's."""
        return Terms(
            begin=partial(self._begin, index),
            device=self.devices[index],
            named=f"the runner on {self.devices[index]}",
            log=log_path(self.folder, index),
            limits=self.limits,
            stopper=self.stopper,
        )

    def _begin(self, index: int, _: Callable[[], None]) -> Begun:
        own = {"device": self.devices[index], "index": index, "runners": len(self.devices)}
        begun = self.spare.take() if self.spare is not None and index == 0 else None
        handle = begun or RunnerProcess(self.command, log_path(self.folder, index))
        return Begun(handle, {**self.request, **own})


class LocalExecutor:
    """One runner per device; see `Executor`."""

    apart = True

    def __init__(self, launch: Launch) -> None:
        self.runners = [SupervisedRunner(launch.terms(i)) for i in range(len(launch.devices))]

    def attend(self, call: Callable[[], object]) -> None:
        """See `Executor.attend`."""
        for runner in self.runners:
            runner.attended = call

    def close(self) -> None:
        """See `Executor.close`."""
        for runner in self.runners:
            runner.close()
