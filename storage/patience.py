"""Waiting for a database that cannot be used for a while: locked, full, restarting.

A search must outlive what passes. With `@patient`, every call of a store is tried again, as each
is one transaction: all of it or nothing. The one doubt, a connection lost during the commit, is
settled by `commit`, which asks the server what became of the transaction.
"""

import inspect
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autopeft.errors import StorageError
from autopeft.study import patience as waiting
from autopeft.study.patience import LOOK_S, Wait
from autopeft.study.progress import Stopper
from storage.engine import Links
from storage.faults import may_pass, storage_errors
from storage.place import Place

T = TypeVar("T")
S = TypeVar("S")

_log = logging.getLogger(__name__)


SLICE_S = 1.0
"""The longest that one try of a search waits for a lock. SQLite waits for it in C, where no signal
is heard: it is patience that waits, between the tries."""


AGAIN_S = 5.0
"""After a stop, and after waiting in vain, nothing is tried so soon after it failed."""


class Patience:
    """How long the calls of one store are tried again.

    Once it has been in vain, calls fail at once until one succeeds: what a search does on its way
    out must not wait all over again. A server that gives no answer at all is not asked again then.

    Args:
        place: The database.
        stopper: Asks for an early end; None is no patience at all.
    """

    def __init__(self, place: Place, stopper: Stopper | None) -> None:
        self._place, self._stopper, self._in_vain = place, stopper, False
        self._began: dict[int, float] = {}
        self._silent: StorageError | None = None
        self._last: tuple[float, StorageError] | None = None

    def guard(self, links: Links) -> None:
        """Cut the connections to a server that has not answered for `GRACE_S` after a stop."""
        stopper = self._stopper
        if stopper is None:
            return
        watch = threading.Thread(
            target=_guard, args=(weakref.ref(self), stopper, links), daemon=True
        )
        watch.start()

    def cut(self, links: Links) -> None:
        """Of `guard`: where a call has been waiting too long."""
        if any(time.monotonic() - began >= waiting.GRACE_S for began in [*self._began.values()]):
            self._silent = StorageError(
                f"{self._place}: the server gives no answer",
                hint="see what holds it, then run the same command again; what was stored is safe",
            )
            links.cut(self._silent)

    def call(self, do: Callable[[], T]) -> T:
        """What `do` gives; tried again while it fails by what may pass.

        Raises:
            StorageError: It failed for good, or for too long.
        """
        wait, told = Wait(self._place.patience_s, self._is_stopping), False
        while True:
            if known := self._known():
                raise known
            try:
                with self._timed():
                    result = do()
            except StorageError as error:
                self._last = time.monotonic(), error
                if self._stopper is None or self._in_vain or not may_pass(error):
                    raise
                if not told:
                    _log.warning("%s; waiting for it", error.message)
                    told = True
                if not wait.pause():
                    self._in_vain = True
                    raise
            else:
                if told:
                    _log.warning("%s: it works again after %.0f s", self._place, wait.seconds)
                self._in_vain = False
                return result

    def _known(self) -> StorageError | None:
        """What a try on the way out would only say again."""
        if self._silent is not None:
            return self._silent
        if self._last is None or not self._in_vain or not self._is_stopping():
            return None
        at, error = self._last
        return error if time.monotonic() - at < AGAIN_S else None

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Calls within calls are timed by the outermost."""
        thread = threading.get_ident()
        outermost = self._began.setdefault(thread, began := time.monotonic()) == began
        try:
            yield
        finally:
            if outermost:
                del self._began[thread]

    def _is_stopping(self) -> bool:
        return self._stopper is not None and bool(self._stopper.reason)


def _guard(of: "weakref.ref[Patience]", stopper: Stopper, links: Links) -> None:
    since: float | None = None
    while (own := of()) is not None:
        now = time.monotonic()
        since = (since or now) if stopper.reason else None
        if since is not None and now - since >= waiting.GRACE_S:
            own.cut(links)
        del own
        time.sleep(LOOK_S)


def patient(store: type[S]) -> type[S]:
    """A store class whose public calls are made through its `patience`.

    Each of them must be one transaction that changes nothing where it fails.
    """
    for name, call in list(vars(store).items()):
        if inspect.isfunction(call) and not name.startswith("_") and name != "close":
            setattr(store, name, _patient(call))
    return store


def _patient(call: Callable[..., T]) -> Callable[..., T]:
    @wraps(call)
    def tried(self: Any, *args: Any, **given: Any) -> T:
        patience: Patience = self.patience
        return patience.call(lambda: call(self, *args, **given))

    return tried


def commit(session: Session, engine: Engine, place: Place, patience: Patience) -> None:
    """Commits, and makes sure that an error means that nothing was.

    Where the connection breaks while PostgreSQL commits, nobody knows: then the transaction's
    number tells. SQLite rolls back what it fails to commit.
    """
    session.flush()
    number = None
    if engine.dialect.name == "postgresql":
        number = session.scalar(text("SELECT txid_current_if_assigned()"))
    try:
        session.commit()
    except DBAPIError as error:
        if number is None or not patience.call(lambda: _took_place(engine, place, number)):
            raise
        _log.debug("the connection was lost after the commit", exc_info=error)


def _took_place(engine: Engine, place: Place, number: int) -> bool:
    """Whether a transaction was committed; waits for its end."""
    query = text("SELECT txid_status(:number)").bindparams(number=number)
    until = time.monotonic() + place.patience_s
    while True:
        with storage_errors(place), engine.connect() as connection:
            status = connection.scalar(query)
        if status != "in progress":
            return bool(status == "committed")
        if time.monotonic() > until:
            raise StorageError(f"{place}: the server does not say whether it kept the last write")
        time.sleep(LOOK_S)
