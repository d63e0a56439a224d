"""Waiting for a database that cannot be used for a while: locked, full, restarting.

A search must outlive what passes. With `@patient`, every call of a store is tried again, as each
is one transaction: all of it or nothing. The one doubt, a connection lost during the commit, is
settled by `commit`, which asks the server what became of the transaction.
"""

import inspect
import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autopeft.errors import StorageError
from autopeft.study.patience import LOOK_S, Wait
from autopeft.study.progress import Stopper
from storage.faults import may_pass, storage_errors
from storage.place import Place

T = TypeVar("T")
S = TypeVar("S")

_log = logging.getLogger(__name__)


class Patience:
    """How long the calls of one store are tried again.

    Once it has been in vain, calls fail at once until one succeeds: what a search does on its way
    out must not wait all over again.

    Args:
        place: The database.
        stopper: Asks for an early end; None is no patience at all.
    """

    def __init__(self, place: Place, stopper: Stopper | None) -> None:
        self._place, self._stopper, self._in_vain = place, stopper, False

    def call(self, do: Callable[[], T]) -> T:
        """What `do` gives; tried again while it fails by what may pass.

        Raises:
            StorageError: It failed for good, or for too long.
        """
        wait, told = Wait(self._place.patience_s, self._is_stopping), False
        while True:
            try:
                result = do()
            except StorageError as error:
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

    def _is_stopping(self) -> bool:
        return self._stopper is not None and bool(self._stopper.reason)


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
