"""The time of a sitting: budgets of seconds, the lease's renewal, requests to stop."""

import time
from typing import Literal, TypeAlias

from autopeft.errors import InterruptedStudyError
from autopeft.study.progress import Stopper
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.settings import TunerSettings

Clock: TypeAlias = Literal["wall_clock", "gpu_hours"]
"""A budget of time, by its key in the study file."""

LEASE_S = 600.0
"""Length of the study's lease: longer than loading, a suggestion or a rung's evaluation takes."""

POLL_S = 2.0
"""Between looks at the database for a stop request, and renewals of the lease."""


class Watch:
    """Knows when to stop, and keeps the lease alive while asked.

    Args:
        ledger: The study.
        settings: Its budgets.
        stopper: Set by signal handlers, and here.
    """

    def __init__(self, ledger: Ledger, settings: TunerSettings, stopper: Stopper) -> None:
        self._ledger, self._settings, self._stopper = ledger, settings, stopper
        self._wall_before = float(ledger.study().spent.get("wall_seconds", 0.0))
        self._began = self._noted = time.monotonic()
        self._polled = 0.0

    @property
    def sitting_s(self) -> float:
        """Seconds of this sitting."""
        return time.monotonic() - self._began

    def renew(self) -> None:
        """Extend the lease, before something that takes long."""
        self._ledger.renew(LEASE_S)

    def stopping(self) -> bool:
        """Whether somebody or something asked for an end; looks at the database now and then."""
        if time.monotonic() - self._polled >= POLL_S:
            self._polled = time.monotonic()
            self.renew()
            limit = self._settings.stop_after_s
            if self._ledger.study().stop_requested:
                self._stopper.request("asked to stop")
            elif limit is not None and self.sitting_s >= limit:
                self._stopper.request("the time of this sitting is over")
        return bool(self._stopper.reason)

    def spent(self) -> Clock | None:
        """Which of the study's clocks has run out, if any."""
        return next((clock for clock, left in self.left().items() if left == 0.0), None)

    def left(self) -> dict[Clock, float | None]:
        """Seconds of wall clock and hours of training left; None without such a budget."""
        wall, train = self._settings.wall_clock_s, self._settings.train_s
        spent = self._ledger.study().spent.get("train_seconds", 0.0)
        wall_left = None if wall is None else wall - self._wall_before - self.sitting_s
        train_left = None if train is None else (train - spent) / 3600.0
        return {
            "wall_clock": None if wall_left is None else max(0.0, wall_left),
            "gpu_hours": None if train_left is None else max(0.0, train_left),
        }

    def note(self) -> None:
        """Add the seconds since the last note to what the study has spent."""
        now = time.monotonic()
        self._ledger.spend(wall_seconds=now - self._noted)
        self._noted = now

    def interrupt(self) -> InterruptedStudyError:
        """End the sitting; the error to raise."""
        self._ledger.interrupt()
        return InterruptedStudyError(
            f"study {self._ledger.name!r} was stopped ({self._stopper.reason}); all is saved",
            hint="the same command goes on",
        )
