"""Ctrl-C and SIGTERM during a search: once saves and stops, twice stops now."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from autopeft.study.progress import Stopper

NOTICE = "saving, press again to stop now"

STEP_S = 20.0
"""So long a running step may take after a signal: SLURM and Kubernetes kill after some 30."""

_SHOW_CURSOR = b"\x1b[?25h\n"


@dataclass
class Received:
    """The signal that asked for a stop.

    Attributes:
        number: Its number, or None while none came.
    """

    number: int | None = None

    @property
    def exit_code(self) -> int | None:
        """What a shell expects of a process ended by the signal (130, 143), or None."""
        return None if self.number is None else 128 + self.number


@contextmanager
def stop_on_signals(stopper: Stopper, notice: Callable[[str], None]) -> Iterator[Received]:
    """Turn the first SIGINT or SIGTERM into a request to stop, the second into an exit.

    What the stopper says may be cut short is, by a KeyboardInterrupt within it.

    Args:
        stopper: What the training loop reads.
        notice: Shows one line; called within a signal handler, so it must neither lock nor
            write through a buffered stream.

    Yields:
        What was received so far.
    """
    received = Received()

    def handle(number: int, _: FrameType | None) -> None:
        if received.number is not None:
            _leave(number)
        received.number = number
        stopper.request(signal.Signals(number).name, within_s=STEP_S)
        notice(NOTICE)
        if stopper.cuts:
            raise KeyboardInterrupt

    previous = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _leave(number: int) -> NoReturn:
    """End the process as it stands: what was stored is whole, the rest was asked to go."""
    if os.isatty(sys.__stderr__.fileno() if sys.__stderr__ else 2):
        os.write(2, _SHOW_CURSOR)
    os._exit(128 + number)
