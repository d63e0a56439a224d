"""One runner's process as its coordinator holds it: started, spoken to, and ended for sure.

The runner leads a session and a process group of its own: Ctrl-C at a terminal reaches the
coordinator alone, and whatever the runner has started goes down with it. A pipe on which nothing
is ever written ends with the coordinator, however that dies; a guard beside the runner waits for
that, and then kills the group (`worker`).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autopeft.errors import TrialError
from autopeft.execution.base import LOST, OUT_OF_MEMORY
from autopeft.execution.channel import ChannelClosedError, Message, MessageReader, encoded
from autopeft.execution.heap import with_heap
from autopeft.execution.runner_log import open_log, tail
from autopeft.training import machine

COMMAND = (sys.executable, "-P", "-m", "autopeft.execution.worker")
"""-P: a file in the working folder must not be taken for a module."""

TERM_S = 5.0
"""Between the end of its input and SIGKILL."""

LIFELINE_VARIABLE = "AUTOPEFT_LIFELINE"
"""Holds the descriptor of the pipe that ends with the coordinator."""


class RunnerProcess:
    """A child process that trains; a `Handle`. Threads of an outpost may call it at once.

    Args:
        command: What to run.
        log: Where its standard error goes, and whatever libraries print.

    Raises:
        OutputError: The log cannot be written.

    Attributes:
        pid: Its process id, and its group's.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        self._ending, self._reading, self._ended = threading.Lock(), threading.Lock(), False
        with open_log(log) as stream:
            # Its end here goes with this process, and no other.
            lifeline, self._lifeline = os.pipe()
            self._log_start = stream.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=_environment(lifeline),
                pass_fds=[lifeline],
                start_new_session=True,
            )
        os.close(lifeline)
        assert self._process.stdout is not None
        self._reader = MessageReader(self._process.stdout.fileno())
        self.pid = self._process.pid
        self._oom_kills = machine.oom_kills()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            ChannelClosedError: The runner is gone.
        """
        assert self._process.stdin is not None
        self._oom_kills = machine.oom_kills()
        try:
            self._process.stdin.write(encoded(message))
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise ChannelClosedError from error

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None where none came in time.

        Raises:
            ChannelClosedError: The runner is gone.
        """
        with self._reading:
            if self._ended:
                raise ChannelClosedError
            return self._reader.next(timeout_s)

    def lend(self, files: Sequence[Path]) -> list[str]:
        """Files as the runner finds them: it is on this machine."""
        return [str(path.absolute()) for path in files]

    @contextmanager
    def saving(self, folder: Path) -> Iterator[str]:
        """A folder as the runner finds it: it is on this machine."""
        yield str(folder.absolute())

    def last_lines(self) -> str:
        """The end of its log."""
        return tail(self._log, self._log_start)

    def ending(self) -> TrialError:
        """What it died of; kills it if it has not."""
        self.kill()
        code = self._process.returncode
        if code == -signal.SIGKILL and machine.oom_kills() > self._oom_kills:
            return TrialError(
                "the kernel killed the runner for want of memory", cause=OUT_OF_MEMORY
            )
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return TrialError(f"the runner died: {how}", cause=LOST)

    def close(self) -> None:
        """Let it end by itself, then make sure; quick where it has nothing to do."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(TERM_S)
        self.kill()

    def terminate(self) -> None:
        """`kill`: a runner that hangs hears nothing."""
        self.kill()

    def kill(self) -> None:
        """SIGKILL to its whole group, also where the runner itself has ended; once."""
        with self._ending:
            if self._ended:
                return
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a zombie
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._lifeline)
            with self._reading:  # whoever listens hears the end of the pipe before it is closed
                self._ended = True
                for stream in (self._process.stdin, self._process.stdout):
                    with suppress(OSError):
                        assert stream is not None
                        stream.close()


def _environment(lifeline: int) -> dict[str, str]:
    """This process's, with the place that autopeft was imported from, and a heap for packs."""
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **with_heap(os.environ),
        "PYTHONPATH": os.pathsep.join(paths),
        LIFELINE_VARIABLE: str(lifeline),
        "PYTHONUNBUFFERED": "1",
    }
