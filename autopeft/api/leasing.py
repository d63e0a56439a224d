"""A study's lease from the first look at it to the last write: taken, renewed, given back."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autopeft.errors import StorageError, StudyHeldError, StudyTakenOverError
from autopeft.study.renewing import QUIET_S, renewing
from autopeft.study.store import Store


@contextmanager
def leased(store: Store, name: str) -> Iterator[int]:
    """The study's lease; its token.

    Raises:
        StudyHeldError: Another coordinator runs the study.
        StudyTakenOverError: Another one has taken it over meanwhile.
    """
    from autopeft.tuner import BUSY_S
    from storage.lease import this_process

    token = store.claim(name, this_process(), BUSY_S)
    store.request_stop(name, False)  # what was asked of an earlier sitting
    try:
        yield token
    except StudyHeldError as error:
        raise StudyTakenOverError(
            f"study {name!r}: another coordinator has taken over while this one stood "
            "still; what came too late is kept apart and not counted",
            hint=f"`autopeft status {name}` tells how it goes on",
        ) from error
    finally:
        store.release(name, token)


@contextmanager
def renewed(store: Store, name: str, token: int) -> Iterator[None]:
    """The lease goes on within the block, however long a model takes to come over the network.

    The process that prepares is the one that supervises; nothing is trained here, so a thread of
    it may speak for it, for a day. Once the lease has passed on it renews no more: the next write
    tells.
    """
    from autopeft.tuner import BUSY_S

    until = time.monotonic() + QUIET_S

    def renew() -> bool:
        with suppress(StorageError):  # away for longer than its patience: the next one tells
            try:
                store.renew(name, token, BUSY_S)
            except StudyHeldError:
                return False
        return time.monotonic() < until

    with renewing(renew, lease_s=BUSY_S):
        yield
