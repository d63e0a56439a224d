"""What the training of one pack took so far, as the loop counts it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Profile:
    """What a pack's training took so far.

    Attributes:
        optimizer_steps: Steps taken.
        samples: Examples per lane.
        tokens: Tokens per lane, padding included.
        train_seconds: In training steps, the whole pack; with what rules do around them.
        scoring_seconds: Of these, in forward passes that sparsity rules asked for.
        evaluation_seconds: In evaluation, the whole pack.
    """

    optimizer_steps: int = 0
    samples: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    scoring_seconds: float = 0.0
    evaluation_seconds: float = 0.0


class DeviceTime:
    """Seconds of parts of what a device does, which are measured without waiting for it.

    A GPU notes when it begins and ends a part; elsewhere it is the host that does.

    Args:
        device: That does it.
    """

    def __init__(self, device: torch.device) -> None:
        self._noted = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is done inside is measured."""
        if not self._noted:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        begin, end = (_event() for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def taken(self) -> float:
        """Seconds since this was last asked; it waits until the device has done them."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
