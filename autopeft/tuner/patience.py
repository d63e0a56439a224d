"""Waiting for room: work whose files cannot be kept is tried again, as long as patience lasts."""

import logging
from collections.abc import Callable
from typing import TypeVar

from autopeft.errors import AutopeftError, InterruptedStudyError, OutputError
from autopeft.study.patience import Wait
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.watch import Watch

T = TypeVar("T")

logger = logging.getLogger(__name__)


class OutputPatience:
    """Waits for the disk of what a study writes; may be shared by threads.

    Once it has been in vain all that is under way is asked to stop, and nothing waits any more.

    Args:
        ledger: The study, whose store says how long.
        watch: Keeps the lease meanwhile, and hears a request to stop.
    """

    def __init__(self, ledger: Ledger, watch: Watch) -> None:
        self._ledger, self._watch, self._in_vain = ledger, watch, False

    def call(self, do: Callable[[], T]) -> T:
        """What `do` gives; tried again while there is no room for what it writes.

        Raises:
            OutputError: There was none for too long.
            InterruptedStudyError: Asked to stop while there was none.
        """
        wait: Wait | None = None
        while True:
            try:
                result = do()
            except OutputError as error:
                if self._in_vain:
                    raise
                if wait is None:
                    wait = Wait(self._ledger.patience_s, self._watch.stopping)
                    logger.warning(
                        "%s; waiting for up to %.0f s", error.message, self._ledger.patience_s
                    )
                if not wait.pause():
                    raise self._given_up(error) from error
            else:
                if wait is not None:
                    logger.warning("there is room again after %.0f s", wait.seconds)
                return result

    def _given_up(self, error: OutputError) -> AutopeftError:
        self._in_vain = True
        study = f"study {self._ledger.name!r}"
        if self._watch.stopping():
            return InterruptedStudyError(
                f"{study} was stopped ({self._watch.reason}) while there was no room to save its "
                f"lanes: {error.message}",
                hint=error.hint,
            )
        self._watch.request_stop("there is no room to save its lanes")
        return OutputError(f"{study} could not be saved: {error.message}", hint=error.hint)
