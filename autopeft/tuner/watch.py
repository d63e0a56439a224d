"""The time of a sitting: budgets, the lease's renewal, requests to stop."""

import time
from threading import RLock
from typing import Literal, TypeAlias

from autopeft.errors import InterruptedStudyError, StudyHeldError
from autopeft.study.progress import Stopper
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.settings import TunerSettings

Clock: TypeAlias = Literal["wall_clock", "gpu_hours", "optimizer_steps"]
"""A budget that trials eat up while they train, by its key in the study file."""

LEASE_S = 60.0
"""Length of the study's lease while somebody looks after it every other second: so long a study
waits to be taken over whose coordinator's machine is gone."""

BUSY_S = 600.0
"""Its length before something that takes long: loading, a suggestion, an evaluation in this very
process."""

POLL_S = 2.0
"""Between looks at the database for a stop request, renewals of the lease, notes of the time."""


class Watch:
    """Knows when to stop, and keeps the lease alive while asked; may be shared by threads.

    Args:
        ledger: The study.
        settings: Its budgets.
        stopper: Set by signal handlers, and here.
        lease_s: Seconds of a lease that is renewed at every look.
    """

    def __init__(
        self, ledger: Ledger, settings: TunerSettings, stopper: Stopper, *, lease_s: float
    ) -> None:
        self._ledger, self._settings, self._stopper = ledger, settings, stopper
        self._lease_s, self._lock = lease_s, RLock()
        self._wall_before = float(ledger.study().spent.get("wall_seconds", 0.0))
        self._began = self._noted = time.monotonic()
        self._polled = 0.0

    @property
    def sitting_s(self) -> float:
        """Seconds of this sitting."""
        return time.monotonic() - self._began

    def renew(self) -> None:
        """Extend the lease, before something that takes long."""
        self._extend(BUSY_S)

    def _extend(self, ttl_s: float) -> None:
        try:
            self._ledger.renew(ttl_s)
        except StudyHeldError:
            # The next write is refused, and what it holds is kept apart: only let it come.
            self._stopper.request("another coordinator has taken over")

    def stopping(self) -> bool:
        """Whether somebody or something asked for an end; looks at the database now and then."""
        with self._lock:
            if time.monotonic() - self._polled >= POLL_S:
                self._polled = time.monotonic()
                self._look()
        return bool(self._stopper.reason)

    def _look(self) -> None:
        self._extend(self._lease_s)
        self.note()
        limit = self._settings.stop_after_s
        if self._ledger.study().stop_requested:
            self._stopper.request("asked to stop")
        elif limit is not None and self.sitting_s >= limit:
            self._stopper.request("the time of this sitting is over")

    def spent(self) -> Clock | None:
        """Which of the study's clocks has run out, if any."""
        return next((clock for clock, left in self.left().items() if left == 0.0), None)

    def left(self) -> dict[Clock, float | None]:
        """Seconds of wall clock, hours of devices, steps left; None without such a budget."""
        settings, study = self._settings, self._ledger.study()
        used = {
            "wall_clock": self._wall_before + self.sitting_s,
            "gpu_hours": study.device_seconds / 3600.0,
            "optimizer_steps": study.spent.get("optimizer_steps", 0.0),
        }
        budgets: dict[Clock, float | None] = {
            "wall_clock": settings.wall_clock_s,
            "gpu_hours": None if settings.train_s is None else settings.train_s / 3600.0,
            "optimizer_steps": settings.optimizer_steps,
        }
        return {
            clock: None if budget is None else max(0.0, budget - used[clock])
            for clock, budget in budgets.items()
        }

    def note(self) -> None:
        """Add the seconds since the last note to what the study has spent."""
        with self._lock:
            now = time.monotonic()
            self._ledger.spend(wall_seconds=now - self._noted)
            self._noted = now

    @property
    def reason(self) -> str:
        """Why to stop, or "" while nobody asked."""
        return self._stopper.reason

    def request_stop(self, reason: str) -> None:
        """Ask all that is under way to stop after its step."""
        self._stopper.request(reason)

    def stopped(self) -> InterruptedStudyError:
        """The error that ends the sitting."""
        return InterruptedStudyError(
            f"study {self._ledger.name!r} was stopped ({self._stopper.reason}); all is saved",
            hint="the same command goes on",
        )
