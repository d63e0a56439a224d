"""What a runner's process does: load, then train what it is given, until its coordinator is gone.

Commands come as JSON lines on standard input, answers go to standard output; whatever libraries
print goes to standard error, which is the log. One thread listens, and hears a request to pause
while a pack trains. Signals that reach every process of a job (SIGINT, SIGTERM) are left to the
coordinator, which has the lanes saved. With the coordinator the runner ends, and all that it has
started: a guard, a process of its own that nothing which hangs here can hold up, waits for that.

    {"do": "hello"}                          -> {"done": null}
    {"do": "load", ...}                      -> {"done": {...}}
    {"do": "start", "lanes": [...], ...}     -> {"done": step}
    {"do": "train", "until": n, "turn": t}   -> {"step": k} ... {"done": reached, "step": k}
    {"do": "pause", "turn": t}                  no answer of its own: that training ends sooner
    {"do": "measure" | "curve" | "save" | "profile" | "probe", ...} -> {"done": ...}
    any of them                              -> {"failed": {"cause", "message", "fatal"}}
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn, TypeAlias

from autopeft.configuration import Configuration
from autopeft.errors import TrialError
from autopeft.execution.base import DISK, ERROR, LOST, OUT_OF_MEMORY, Run, Runner
from autopeft.execution.channel import Message, decoded, encoded
from autopeft.execution.runner_process import LIFELINE_VARIABLE
from autopeft.study.confirmation import Opening
from autopeft.study.disk import disk_fault

logger = logging.getLogger(__name__)

Build: TypeAlias = Callable[[Mapping[str, Any]], Runner]
"""Makes what trains of a `load` command."""

STEP_S = 0.05
"""Between two reports of steps."""

MOST_DESCRIPTORS = 256
"""More than a process has open that has but started."""

POISONED = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "NCCL error", "device-side assert")
"""What errors say after which a process can no longer use its device."""

FATAL_EXIT = 70


def serve(build: Build) -> None:
    """Serve one coordinator until it is gone.

    Args:
        build: Loads what the `load` command names.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the coordinator hears them, and decides
        signal.signal(number, signal.SIG_IGN)
    _post_guard()
    answers = _take_stdout()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    Worker(build, Inbox(sys.stdin.buffer), answers).run()


class Inbox:
    """Commands that have arrived.

    Args:
        stream: Standard input.

    Attributes:
        paused: The training that was last asked to pause, by its turn: one that is over by then
            must not be taken for the next one.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._commands: SimpleQueue[Message] = SimpleQueue()
        self.paused: int | None = None
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def next(self) -> Message:
        """The next command; waits for it."""
        return self._commands.get()

    def _listen(self) -> None:
        for line in self._stream:
            message = decoded(line)
            if message["do"] == "pause":
                self.paused = message["turn"]
            else:
                self._commands.put(message)
        _end_group()


class Worker:
    """Does what it is told, one command after the other."""

    def __init__(self, build: Build, inbox: Inbox, answers: BinaryIO) -> None:
        self._build, self._inbox, self._answers = build, inbox, answers
        self._built: Runner | None = None
        self._run: Run | None = None
        self._told = 0.0
        self._commands: dict[str, Callable[..., Any]] = {
            "hello": lambda: None,
            "load": self._load,
            "start": self._start,
            "measure": self._measure,
            "curve": self._curve,
            "save": self._save,
            "profile": self._profile,
            "probe": self._probe,
        }

    def run(self) -> NoReturn:
        """Serve; ends with the process."""
        while True:
            message = self._inbox.next()
            do = message.pop("do")
            try:
                answer = self._train(**message) if do == "train" else self._done(do, message)
            except Exception as error:
                place = Path(message["folder"]) if do == "save" else None
                answer = {"failed": _failure(error, place)}
                if place is None or answer["failed"]["cause"] != DISK:
                    self._run = None  # its memory is needed by what is tried next
                logger.exception("%s failed", do)
            self._say(answer)
            if answer.get("failed", {}).get("fatal"):
                os._exit(FATAL_EXIT)

    def _done(self, do: str, what: Mapping[str, Any]) -> Message:
        return {"done": self._commands[do](**what)}

    def _say(self, message: Mapping[str, Any]) -> None:
        self._answers.write(encoded(message))
        self._answers.flush()

    @property
    def _runner(self) -> Runner:
        if self._built is None:
            raise RuntimeError("nothing is loaded")
        return self._built

    @property
    def _pack(self) -> Run:
        if self._run is None:
            raise RuntimeError("no pack was started")
        return self._run

    # -- commands -----------------------------------------------------------------------------

    def _load(self, **request: Any) -> dict[str, Any]:
        self._built = self._build(request)
        return {"pid": os.getpid(), "host": socket.gethostname()}

    def _probe(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        self._run = None
        return self._runner.probe(Configuration.from_dict(configuration))

    def _start(
        self,
        lanes: list[tuple[int, Mapping[str, Any]]],
        resume: Mapping[str, str],
        waited: Mapping[str, float],
        replicate: int,
        micro_batch_size: int | None,
    ) -> int:
        self._run = None
        logger.info("trials %s", ", ".join(str(number) for number, _ in lanes))
        self._run = self._runner.start(
            [(number, Configuration.from_dict(plain)) for number, plain in lanes],
            resume={int(number): Path(path) for number, path in resume.items()},
            waited={int(number): seconds for number, seconds in waited.items()},
            replicate=replicate,
            micro_batch_size=micro_batch_size,
        )
        return self._run.step

    def _train(self, until: int, turn: int) -> Message:
        def on_step(step: int) -> bool:
            now = time.monotonic()
            if now - self._told >= STEP_S:
                self._told = now
                self._say({"step": step})
            return self._inbox.paused != turn

        reached = self._pack.train(until, on_step=on_step)
        return {"done": reached, "step": self._pack.step}

    def _measure(
        self, opening: Mapping[str, Any] | None
    ) -> list[tuple[int, Mapping[str, float], bool]]:
        opened = None if opening is None else Opening.of(opening)
        return [(each.number, each.values, each.diverged) for each in self._pack.measure(opened)]

    def _save(self, folder: str) -> None:
        self._pack.save(Path(folder))

    def _profile(self, number: int) -> dict[str, Any]:
        return self._pack.profile(number)

    def _curve(self) -> dict[str, list[dict[str, Any]]]:
        return {
            str(number): [asdict(point) for point in points]
            for number, points in self._pack.curve().items()
        }


def _failure(error: Exception, place: Path | None) -> dict[str, Any]:
    """What a coordinator needs to know of an error, in what was to write to a place or not."""
    if fault := disk_fault(error, place):
        return {"cause": DISK, "message": fault.message, "fatal": False}
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, TrialError):
        return {"cause": error.cause, "message": text, "fatal": False}
    if isinstance(error, MemoryError):
        return {"cause": OUT_OF_MEMORY, "message": "the machine is out of memory", "fatal": False}
    if isinstance(error, RuntimeError) and any(mark in str(error) for mark in POISONED):
        return {"cause": LOST, "message": text, "fatal": True}
    named = text if isinstance(error, RuntimeError) else f"{type(error).__name__}: {text}"
    return {"cause": ERROR, "message": named, "fatal": False}


# -- the process ----------------------------------------------------------------------------------


def _take_stdout() -> BinaryIO:
    """Standard output for answers alone: whatever else is printed goes to the log."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _post_guard() -> None:
    """Have a process kill this one's group once the coordinator is gone.

    It is forked before anything is loaded, and holds nothing but the lifeline: the coordinator
    must see the ends of all other pipes when the runner itself is gone.
    """
    lifeline = int(os.environ.pop(LIFELINE_VARIABLE))
    if os.fork():
        os.close(lifeline)
        return
    os.dup2(lifeline, 0)
    os.closerange(1, MOST_DESCRIPTORS)
    os.read(0, 1)
    _end_group()


def _end_group() -> NoReturn:
    if os.getpgrp() == os.getsid(0):  # never one that it shares with a terminal's other jobs
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(FATAL_EXIT)


if __name__ == "__main__":
    from autopeft.execution.worker_materials import build_runner

    serve(build_runner)
