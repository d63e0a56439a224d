"""A lease that goes on while its holder is too busy to look: a thread renews it meanwhile.

A thread also speaks for a process that hangs. So it may do so for `QUIET_S` after the last sign of
life, no longer; then the lease runs out, and others can take over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

QUIET_S = 86_400.0
"""A day: no proposal, step or evaluation is known that takes as long."""

RENEWALS = 10
"""Within one length of the lease: what holds the interpreter for a while costs some of them."""

_LAST_S = 2.0
"""How long the end waits for a renewal that is under way."""


@contextmanager
def renewing(renew: Callable[[], bool], *, lease_s: float) -> Iterator[None]:
    """Within, a thread calls `renew` ten times in the length of a lease; it ends with the block.

    Args:
        renew: Extends the lease where that is right; False where the thread is to end. Called from
            that thread, so it must reach the database by a connection that no other thread uses.
        lease_s: Length of the lease.
    """
    over = Event()

    def go_on() -> None:
        while not over.wait(lease_s / RENEWALS) and renew():
            pass

    thread = Thread(target=go_on, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LAST_S)
