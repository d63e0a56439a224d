"""A runner on another machine, as it is looked after there.

What a cluster starts on a node is an `Outpost`, not the runner: it keeps the runner's process as a
coordinator keeps one on its own machine (`runner_process`), passes messages on, and holds the
files that come and go. So a runner that hangs is ended with its children, one that dies leaves its
last lines, and whatever ends the outpost ends the runner too.

An outpost knows nothing of the cluster; all that it gives and takes is plain.
"""

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autopeft.execution.channel import ChannelClosedError, Message
from autopeft.execution.runner_log import log_path
from autopeft.execution.runner_process import COMMAND, RunnerProcess
from autopeft.study.disk import writing

DECIDING = ("autopeft", "torch", "transformers", "numpy")
"""Packages whose versions decide what a runner finds."""

PREFIX = "autopeft-outpost-"
_NAME = re.compile(re.escape(PREFIX) + r"(\d+)-")

LOG_S = 2.0
"""What the runner writes to its log is told this often: its node may be gone a moment later."""


@dataclass(frozen=True)
class Greeting:
    """What an outpost says first.

    Attributes:
        host: The name of its machine.
        root: The folder below which it puts files.
        versions: Of what is installed there and decides results, see `installed`.
    """

    host: str
    root: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """How a runner's process ended."""

    cause: str
    message: str


@dataclass(frozen=True)
class Heard:
    """What an outpost has heard of its runner.

    Attributes:
        messages: In their order; () where it said nothing.
        log: The last lines of its log, or None where they were told a moment ago.
        ended: How it ended, or None while it lives.
    """

    messages: tuple[Message, ...] = ()
    log: str | None = None
    ended: Ended | None = None


class Outpost:
    """Keeps one runner's process; may be called from several threads.

    Args:
        command: What starts a runner; this machine's own Python where it is None.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        _sweep()
        self._root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._command = tuple(command or COMMAND)
        self._process: RunnerProcess | None = None
        self._log_told = 0.0

    def hello(self) -> Greeting:
        """Where it is, and what is installed there."""
        return Greeting(socket.gethostname(), str(self._root), installed())

    # -- files --------------------------------------------------------------------------------

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether all these files lie on this machine, each of so many bytes."""
        return all(_size(Path(path)) == size for path, size in sizes.items())

    def put(self, place: str, content: bytes) -> str:
        """Write a file below this outpost's folder; where it lies now."""
        path = self._below(place)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return str(path)

    def fresh(self, place: str) -> str:
        """An empty folder below this outpost's."""
        path = self._below(place)
        shutil.rmtree(path, ignore_errors=True)
        with writing(path):
            path.mkdir(parents=True)
        return str(path)

    def names(self, place: str) -> list[str]:
        """The names of the files in a folder."""
        return sorted(path.name for path in self._below(place).iterdir() if path.is_file())

    def get(self, place: str) -> bytes:
        """The content of a file."""
        return self._below(place).read_bytes()

    def _below(self, place: str) -> Path:
        path = (self._root / place).resolve()
        if self._root.resolve() not in path.parents:
            raise ValueError(f"{place} is not below {self._root}")
        return path

    # -- the runner ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the runner's process."""
        self._process = RunnerProcess(self._command, log_path(self._root, 0))

    def send(self, message: Message) -> None:
        """Pass a message on; that the runner is gone shows when it is listened to."""
        try:
            self._runner.send(message)
        except ChannelClosedError:
            return

    def hear(self, wait_s: float) -> Heard:
        """What the runner has said; waits some seconds for its first word."""
        messages: list[Message] = []
        try:
            message = self._runner.receive(wait_s)
            while message is not None:
                messages.append(message)
                message = self._runner.receive(0.0)
        except ChannelClosedError:
            return self._last(messages)
        failed = any("failed" in each for each in messages)
        if not failed and time.monotonic() - self._log_told < LOG_S:
            return Heard(tuple(messages))
        self._log_told = time.monotonic()
        return Heard(tuple(messages), self._runner.last_lines())

    def _last(self, messages: Sequence[Message]) -> Heard:
        error = self._runner.ending()
        ended = Ended(error.cause, error.message)
        return Heard(tuple(messages), self._runner.last_lines(), ended)

    def terminate(self) -> str:
        """End the runner with all that it has started; the last lines of its log."""
        self._runner.terminate()
        return self._runner.last_lines()

    def close(self) -> None:
        """Let the runner end, and leave nothing on this machine."""
        if self._process is not None:
            self._process.close()
        shutil.rmtree(self._root, ignore_errors=True)

    @property
    def _runner(self) -> RunnerProcess:
        if self._process is None:
            raise RuntimeError("no runner was begun")
        return self._process


def installed() -> dict[str, str]:
    """Versions of what trains, where they are known."""
    found = {}
    for package in DECIDING:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _sweep() -> None:
    """Remove what outposts have left that were killed on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        match = _NAME.match(folder.name)
        if match is not None and not _lives(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
