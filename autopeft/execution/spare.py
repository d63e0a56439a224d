"""A runner's process begun before it is known what it will train.

It imports what trains while its coordinator imports, loads and checks: seconds for which the first
trial would wait otherwise.
"""

from contextlib import suppress
from pathlib import Path

from autopeft.execution.channel import ChannelClosedError
from autopeft.execution.runner_log import log_path, remove_unused
from autopeft.execution.runner_process import COMMAND, RunnerProcess

PATIENCE_S = 120.0
"""What has not imported everything by then is given up; another one will be begun."""


class Spare:
    """The process of a study's first runner, until somebody takes it.

    Args:
        folder: The study's artifacts; its log goes below it.
    """

    def __init__(self, folder: Path) -> None:
        self._log = log_path(folder, 0)
        places = (self._log, *self._log.parents)
        self._made = [place for place in places if not place.exists()]
        self._process: RunnerProcess | None = RunnerProcess(COMMAND, self._log)

    def settle(self) -> None:
        """Wait until it has imported everything: what is timed now shall be alone."""
        if self._process is None:
            return
        answer = None
        with suppress(ChannelClosedError):
            self._process.send({"do": "hello"})
            answer = self._process.receive(PATIENCE_S)
        if answer is None:  # dead, or it might be heard when another answer is waited for
            self.close()

    def take(self) -> RunnerProcess | None:
        """The process, which is the caller's from now on; None where it was taken before."""
        taken, self._process = self._process, None
        return taken

    def close(self) -> None:
        """End it where nobody took it, and leave nothing of it on the disk but what it said."""
        if self._process is None:
            return
        self._process.kill()
        self._process = None
        with suppress(OSError):  # somebody has put more there
            for place in self._made:
                place.rmdir() if place.is_dir() else remove_unused(place)
