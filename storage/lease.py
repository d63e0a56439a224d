"""The lease: at most one coordinator per study, and no late writes.

Whoever claims a free lease gets the next fencing token; every write names its token, and one
whose token has been passed over changes nothing. Leases run out on the database's clock. One whose
holder is seen to be dead is free at once, so that a killed search goes on without waiting.
"""

import os
import socket
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Update, and_, select, update
from sqlalchemy.orm import Session

from autopeft.errors import StudyHeldError
from autopeft.study.records import Holder
from storage.columns import DatabaseNow
from storage.lookup import StudyKey, find_study, no_study
from storage.models import StudyRow
from storage.records import now

_PROC = Path("/proc")
_DEAD_STATES = "ZX"


# -- processes ------------------------------------------------------------------------------------


def this_process() -> Holder:
    """This process, as the holder of a lease."""
    pid = os.getpid()
    found = _state_and_start(pid)
    boot = f"{_pid_space()}:{found[1]}" if found else ""
    return Holder(host=socket.gethostname(), pid=pid, boot=boot)


def lives(holder: Holder) -> bool:
    """Whether the holder may still live; True wherever this process cannot tell."""
    space, _, start = holder.boot.rpartition(":")
    if os.name != "posix" or holder.host != socket.gethostname():
        return True
    # Containers and cloned machines share host names, not process ids.
    if space and space != _pid_space():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    found = _state_and_start(holder.pid)
    if found is None:
        return True
    return found[0] not in _DEAD_STATES and start in ("", found[1])


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """A process's state and its start in clock ticks since boot (proc(5)); None without /proc."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the command's name in brackets; it may hold blanks and brackets.
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]


@cache
def _pid_space() -> str:
    """Names the table of process ids that this process sees: this boot and pid namespace."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


# -- claiming -------------------------------------------------------------------------------------


def claim(session: Session, name: str, holder: Holder, ttl_s: float) -> int:
    """Takes the lease; its fencing token. See `Store.claim`."""
    taken = {
        "lease_token": StudyRow.lease_token + 1,
        "lease_until_s": DatabaseNow() + ttl_s,
        "lease_host": holder.host,
        "lease_pid": holder.pid,
        "lease_boot": holder.boot,
    }
    query = update(StudyRow).where(StudyRow.name == name).values(taken)
    if not _changed(session, query.where(~_held())):
        row = _lease(session, name)
        if lives(_holder(row)):
            raise _held_by(row)
        # Whoever else saw the holder dead may have been quicker: then the token has moved on.
        if not _changed(session, query.where(StudyRow.lease_token == row.lease_token)):
            raise _held_by(_lease(session, name))
    token: int = _lease(session, name).lease_token
    return token


def renew(session: Session, name: str, token: int, ttl_s: float) -> None:
    """Extends the lease. See `Store.renew`."""
    query = update(StudyRow).where(_holds(name, token))
    if not _changed(session, query.values(lease_until_s=DatabaseNow() + ttl_s)):
        raise _passed_on(session, name, token)


def release(session: Session, name: str, token: int) -> None:
    """Gives the lease back. See `Store.release`."""
    query = update(StudyRow).where(_holds(name, token))
    if not _changed(session, query.values(lease_until_s=None)):
        find_study(session, name)


def guard(session: Session, name: str, token: int) -> StudyKey:
    """Opens a write: the study's key, its row locked and marked as changed.

    Raises:
        StudyHeldError: The lease has passed on, or was given back.
    """
    if not _changed(session, update(StudyRow).where(_holds(name, token)).values(updated_at=now())):
        raise _passed_on(session, name, token)
    return find_study(session, name)


def holder_of(session: Session, name: str, *, lock: bool = False) -> Holder | None:
    """Who holds the study now; None where the lease is free, has run out, or its holder died.

    With `lock`, nobody can claim it before the transaction ends.
    """
    query = select(_held()).where(StudyRow.name == name)
    held = session.scalar(query.with_for_update() if lock else query)
    if held is None:
        raise no_study(session, name)
    holder = _holder(_lease(session, name)) if held else None
    return holder if holder and lives(holder) else None


def holders(session: Session, name: str | None = None) -> dict[int, Holder]:
    """Who holds each study that is held, by the study's row; of one name, or of all."""
    columns = (StudyRow.id, StudyRow.lease_host, StudyRow.lease_pid, StudyRow.lease_boot)
    query = select(*columns).where(_held())
    query = query if name is None else query.where(StudyRow.name == name)
    found = {row.id: _holder(row) for row in session.execute(query)}
    return {study: holder for study, holder in found.items() if lives(holder)}


def check_free(session: Session, name: str) -> None:
    """Raises StudyHeldError where a coordinator holds the study, and keeps others from it."""
    if holder_of(session, name, lock=True):
        raise _held_by(_lease(session, name))


def check_idle(session: Session, name: str) -> None:
    """Raises StudyHeldError where a coordinator holds the study; keeps nobody from it."""
    if holder_of(session, name):
        raise _held_by(_lease(session, name))


# -- parts ----------------------------------------------------------------------------------------


def _held() -> ColumnElement[bool]:
    return and_(StudyRow.lease_until_s.is_not(None), StudyRow.lease_until_s > DatabaseNow())


def _holds(name: str, token: int) -> ColumnElement[bool]:
    """A lease that ran out still holds until someone else claims it."""
    return and_(
        StudyRow.name == name,
        StudyRow.lease_token == token,
        StudyRow.lease_until_s.is_not(None),
    )


def _changed(session: Session, query: Update) -> bool:
    result = session.execute(query, execution_options={"synchronize_session": False})
    return cast("CursorResult[Any]", result).rowcount == 1


def _lease(session: Session, name: str) -> Any:
    columns = (
        StudyRow.name,
        StudyRow.lease_token,
        StudyRow.lease_until_s,
        StudyRow.lease_host,
        StudyRow.lease_pid,
        StudyRow.lease_boot,
    )
    row = session.execute(select(*columns).where(StudyRow.name == name)).one_or_none()
    if row is None:
        raise no_study(session, name)
    return row


def _holder(row: Any) -> Holder:
    return Holder(row.lease_host or "", row.lease_pid or 0, row.lease_boot or "")


def _until(row: Any) -> str:
    return f"{datetime.fromtimestamp(row.lease_until_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _held_by(row: Any) -> StudyHeldError:
    return StudyHeldError(
        f"study {row.name}: process {row.lease_pid} on {row.lease_host} is running it, "
        f"its lease runs out at {_until(row)}",
        hint=f"wait for it, or stop it with `autopeft stop {row.name}`",
    )


def _passed_on(session: Session, name: str, token: int) -> StudyHeldError:
    row = _lease(session, name)
    if row.lease_token == token:
        return StudyHeldError(f"study {name}: its lease was given back; claim it before writing")
    return StudyHeldError(
        f"study {name}: its lease passed from this coordinator to process {row.lease_pid} on "
        f"{row.lease_host}; nothing was written"
    )
