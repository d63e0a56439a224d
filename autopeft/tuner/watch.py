"""The time of a sitting: budgets, the lease's renewal, requests to stop."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import RLock
from typing import Literal, TypeAlias

from autopeft.errors import InterruptedStudyError, StorageError, StudyHeldError
from autopeft.study.renewing import QUIET_S, RENEWALS, renewing
from autopeft.study.sitting import Sitting
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.settings import TunerSettings

Clock: TypeAlias = Literal["wall_clock", "gpu_hours", "optimizer_steps"]
"""A budget that trials eat up while they train, by its key in the study file."""

LEASE_S = 60.0
"""Length of the study's lease while somebody looks after it every other second: so long a study
waits to be taken over whose coordinator's machine is gone."""

BUSY_S = 600.0
"""Its length while nobody may look for long: loading, a suggestion, training in this very
process. A thread renews it meanwhile."""

POLL_S = 2.0
"""Between looks at the database for a stop request, renewals of the lease, notes of the time."""


class Watch:
    """Knows when to stop, and keeps the lease alive while asked; may be shared by threads.

    Args:
        ledger: The study.
        settings: Its budgets.
        sitting: Lasts since the command began.
        apart: Whether other processes train, so that this one looks at the lease all the time.
    """

    def __init__(
        self, ledger: Ledger, settings: TunerSettings, sitting: Sitting, *, apart: bool
    ) -> None:
        self._ledger, self._settings, self._sitting = ledger, settings, sitting
        self._apart, self._lock = apart, RLock()
        self._began, self._polled = sitting.seconds, float("-inf")
        self._looked = sitting.seconds
        self._lost: dict[int, str] = {}

    @property
    def working_s(self) -> float:
        """Seconds of this sitting since all was prepared."""
        return self._sitting.seconds - self._began

    def renew(self) -> None:
        """Extend the lease, before something that takes long."""
        self._looked = self._sitting.seconds
        self._extend(BUSY_S)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, the lease goes on though nobody looks: a thread renews it.

        No longer than until a stop is asked for, and for a day after the last look: others must be
        able to take over from a coordinator that hangs.
        """
        self.renew()
        with renewing(self._renew_unasked, lease_s=BUSY_S):
            yield

    def training(self) -> AbstractContextManager[None]:
        """Around what runners do: `kept`, where they are this very process."""
        return nullcontext() if self._apart else self.kept()

    def _renew_unasked(self) -> bool:
        """For the thread: extend the lease, unless it is looked after; whether to go on."""
        if self.reason:
            return False
        quiet_s = self._sitting.seconds - self._looked
        if BUSY_S / RENEWALS <= quiet_s <= QUIET_S:
            with suppress(StorageError):  # whoever writes next finds out
                self._extend(BUSY_S)
        return True

    def _extend(self, ttl_s: float) -> None:
        try:
            self._ledger.renew(ttl_s)
        except StudyHeldError:
            # The next write is refused, and what it holds is kept apart: only let it come.
            self._sitting.stopper.request("another coordinator has taken over")

    def stopping(self) -> bool:
        """Whether somebody or something asked for an end; looks at the database now and then.

        Once a stop is asked for, a database that fails is told of by what is written last.
        """
        self._looked = self._sitting.seconds
        with self._lock:
            if self._sitting.seconds - self._polled >= POLL_S:
                self._polled = self._sitting.seconds
                try:
                    self._look()
                except StorageError:
                    if not self.reason:
                        raise
        return self._sitting.stopping()

    def _look(self) -> None:
        self._extend(LEASE_S if self._apart else BUSY_S)
        self.note()
        if self._ledger.study().stop_requested:
            self._sitting.stopper.request("asked to stop")

    def spent(self) -> Clock | None:
        """Which of the study's clocks has run out, if any."""
        return next((clock for clock, left in self.left().items() if left == 0.0), None)

    def left(self) -> dict[Clock, float | None]:
        """Seconds of wall clock, hours of devices, steps left; None without such a budget."""
        self.note()
        settings, study = self._settings, self._ledger.study()
        used = {
            "wall_clock": study.spent.get("wall_seconds", 0.0),
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
        self._sitting.pay(self._ledger.spend)

    @property
    def reason(self) -> str:
        """Why to stop, or "" while nobody asked."""
        return self._sitting.stopper.reason

    def lost(self, numbers: Sequence[int], message: str) -> None:
        """Trials whose pack failed: what they have trained since they were last saved is gone."""
        with self._lock:
            self._lost.update(dict.fromkeys(numbers, message))

    def saved(self, numbers: Sequence[int]) -> None:
        """Trials that are saved where they are now, or have ended."""
        with self._lock:
            for number in numbers:
                self._lost.pop(number, None)

    def request_stop(self, reason: str) -> None:
        """Ask all that is under way to stop after its step."""
        self._sitting.stopper.request(reason)

    def cut_short(self) -> AbstractContextManager[None]:
        """Within, a signal ends at once whatever runs: nothing of it needs to be saved.

        Raises:
            InterruptedStudyError: Asked to stop.
        """
        return self._sitting.cut_short(self._heed)

    def _heed(self) -> None:
        if self._sitting.stopping():  # without a look at the database, which a signal would cut
            raise self.stopped()

    def stopped(self) -> InterruptedStudyError:
        """The error that ends the sitting."""
        reason = self._sitting.stopper.reason
        return InterruptedStudyError(
            f"study {self._ledger.name!r} was stopped ({reason}); {self._kept()}",
            hint="the same command goes on",
        )

    def _kept(self) -> str:
        with self._lock:
            if not self._lost:
                return "all is saved"
            shown = ", ".join(map(str, sorted(self._lost)))
            why = next(reversed(self._lost.values()))
        return f"what trials {shown} have trained since they were last saved is lost: {why}"
