"""Runners that have no place for a while: others do their work."""

import logging
from collections.abc import Sequence

from autopeft.errors import RunnerAwayError
from autopeft.execution.base import Runner
from autopeft.tuner.watch import Watch

logger = logging.getLogger(__name__)


def first_there(runners: Sequence[Runner], watch: Watch) -> int:
    """The first runner that is there, by its place; begins it where it is not running.

    Raises:
        InterruptedStudyError: The study is to stop, and none is there.
        AutopeftError: None has been there for too long.
    """
    while True:
        for index, runner in enumerate(runners):
            try:
                runner.identity  # noqa: B018 - begins it
            except RunnerAwayError as error:
                pass_over(error, watch)
            else:
                return index


def pass_over(error: RunnerAwayError, watch: Watch) -> None:
    """Go on without a runner.

    Raises:
        InterruptedStudyError: The study is to stop.
    """
    logger.info("%s", error)
    if watch.stopping():
        raise watch.stopped()
