"""A sitting: one run of a command over a study, from the moment it begins.

Preparation is a part of it: loading, importance, calibration and probes take time that the study
has to pay for, and end when somebody asks for an end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import RLock

from autopeft.errors import InterruptedStudyError
from autopeft.study.progress import Stopper

OVER = "the time of this sitting is over"

NOT_STORED = "nothing is stored"
"""What is left of the preparation of a study that was not created yet."""

AS_SAVED = "all is as it was saved"
"""The same, of one that was."""


class Sitting:
    """Knows since when it lasts, when it is to end, and what is not paid for yet.

    Threads may share it.

    Args:
        stopper: Asks for an early end: whoever else holds it, and the sitting when its time is
            over.
        stop_after_s: Seconds after which its time is over, or None.
        clock: Seconds that never go back.

    Attributes:
        stopper: See above.
    """

    def __init__(
        self,
        stopper: Stopper | None = None,
        *,
        stop_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stopper = stopper or Stopper()
        self._stop_after_s, self._clock = stop_after_s, clock
        self._began = self._paid_until = clock()
        self._device_s, self._lock = 0.0, RLock()

    # -- its end ------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def stopping(self) -> bool:
        """Whether it is to end."""
        limit = self._stop_after_s
        if limit is not None and self.seconds >= limit and not self.stopper.reason:
            self.stopper.request(OVER)
        return bool(self.stopper.reason)

    def heed(self, study: str, left: str) -> None:
        """Nothing, unless it is to end while a study is prepared.

        Args:
            study: Its name.
            left: What is stored of the preparation.

        Raises:
            InterruptedStudyError: It is to end.
        """
        if self.stopping():
            reason = self.stopper.reason
            raise InterruptedStudyError(
                f"study {study!r} was stopped ({reason}) while it was prepared; {left}",
                hint="the same command begins again",
            )

    @contextmanager
    def preparing(self, study: str, left: str) -> Iterator[None]:
        """Within, nothing needs to be saved: a signal ends at once whatever runs.

        So a backbone that loads for minutes, or a step that is slow, holds nobody up. Other
        requests are heard where `stopping` is asked, and at the end.

        Raises:
            InterruptedStudyError: It is to end.
        """
        heed = partial(self.heed, study, left)
        with self.cut_short(heed):
            yield
        heed()

    @contextmanager
    def cut_short(self, heed: Callable[[], None]) -> Iterator[None]:
        """Within, a signal ends at once whatever runs.

        Args:
            heed: Raises where the sitting is to end, at the start or by a signal.
        """
        try:
            self.stopper.cuts = True
            heed()
            yield
        except KeyboardInterrupt:
            heed()
            raise  # nobody's request: no handler turns the signal into one
        finally:
            self.stopper.cuts = False

    # -- what it costs ------------------------------------------------------------------------

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within, the study's device works for its preparation."""
        began = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._device_s += self._clock() - began

    def pay(self, spend: Callable[..., None]) -> None:
        """Add to what the study has spent what was not added before.

        Args:
            spend: Takes `wall_seconds` and `preparation_seconds`; what it fails to add stays due.
        """
        with self._lock:
            now = self._clock()
            due = {"wall_seconds": now - self._paid_until}
            if self._device_s:
                due["preparation_seconds"] = self._device_s
            spend(**due)
            self._paid_until, self._device_s = now, 0.0

    @contextmanager
    def paying(self, spend: Callable[..., None]) -> Iterator[None]:
        """What came before is paid at once, what comes within at its end, whatever happens."""
        self.pay(spend)
        try:
            yield
        finally:
            self.pay(spend)
