"""Waiting for what may pass by itself: a database that restarts, a disk that is being cleared."""

import time
from collections.abc import Callable

GRACE_S = 10.0
"""How long to wait when the search was asked to stop: it must end within 30 seconds."""

FIRST_PAUSE_S, LONGEST_PAUSE_S, LOOK_S = 0.1, 5.0, 0.1


class Wait:
    """Pauses between tries of one thing: twice as long each time, as long as patience lasts.

    Args:
        patience_s: Seconds, from now on.
        stopping: Whether a stop was asked for, which leaves `GRACE_S`; looked at all the time.
    """

    def __init__(self, patience_s: float, stopping: Callable[[], bool]) -> None:
        self._patience_s, self._stopping = patience_s, stopping
        self._began, self._pause_s = time.monotonic(), FIRST_PAUSE_S

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def pause(self) -> bool:
        """Wait a while; False where patience is over."""
        until = time.monotonic() + self._pause_s
        self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)
        while (left := until - time.monotonic()) > 0.0:
            if self._is_over():
                return False
            time.sleep(min(LOOK_S, left))
        return not self._is_over()

    def _is_over(self) -> bool:
        limit = min(GRACE_S, self._patience_s) if self._stopping() else self._patience_s
        return self.seconds >= limit
