"""How long a runner may take before it is held to hang.

A pack's limit comes from what calibration found of a step's seconds, or from the steps that the
pack has taken so far; it is generous, since a machine that others use may slow down, and one pack
that was given up for nothing costs more than a hang that is found some minutes later.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

LEAST_S = 600.0
FACTOR = 10.0
"""A pack may take so many times what is expected of it, and `LEAST_S` at least."""

UNKNOWN_S = 3600.0
"""For whatever nothing is known of: the first steps of a pack, an evaluation, loading a model."""

SLEPT_S = 5.0
"""A wait of this much longer than was asked for means that this very process stood still."""


@dataclass(frozen=True)
class TimeLimits:
    """The limits of one study.

    Attributes:
        given_s: `execution.pack_limit`, or None for what can be expected.
        step_seconds: Of calibrated packs, by lanes; may be empty.
    """

    given_s: float | None = None
    step_seconds: Mapping[int, float] = field(default_factory=dict)

    def call_s(self) -> float:
        """Seconds for what is no training."""
        return self.given_s or UNKNOWN_S

    def training_s(self, lanes: int, steps: int) -> float | None:
        """Seconds for a pack's steps; None where nothing is known yet."""
        if self.given_s is not None:
            return self.given_s
        if not self.step_seconds:
            return None
        return self.at_pace(self._step_s(lanes), steps)

    def at_pace(self, step_s: float, steps: int) -> float:
        """Seconds for steps of which each takes so long."""
        return self.given_s or max(LEAST_S, FACTOR * step_s * steps)

    def _step_s(self, lanes: int) -> float:
        """A step's seconds: never taken for fewer than a larger pack's, in proportion beyond."""
        larger = [size for size in self.step_seconds if size >= lanes]
        size = min(larger, default=max(self.step_seconds))
        return self.step_seconds[size] * max(1.0, lanes / size)


class Deadline:
    """A moment that moves on while this very process stands still (SIGSTOP, a laptop's sleep).

    Args:
        limit_s: Seconds from now.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._began = self._looked = time.monotonic()
        self._slept = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds since it began, without those that were slept."""
        return self._looked - self._began - self._slept

    def over(self) -> bool:
        """Whether it is past; to be asked every second or so."""
        now = time.monotonic()
        if now - self._looked > SLEPT_S:
            self._slept += now - self._looked
        self._looked = now
        return self.waited_s > self.limit_s
