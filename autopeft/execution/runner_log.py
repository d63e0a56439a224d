"""The log of a runner: a file under the study's artifacts, and its last lines for people.

Whatever has a log open holds a shared lock on it, which goes with the process: so one that nobody
used can be removed without taking it from another runner.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from autopeft.study.disk import writing

KEPT_BYTES = 4 << 20
"""A log that has grown beyond this begins anew; the one before it is kept beside it."""

UNUSED_S = 0.5
"""How long what was killed may take to let go of its log."""

TAIL_BYTES = 8192
TAIL_LINES = 20


def log_path(folder: Path, index: int) -> Path:
    """Where a runner's log lies within a study's artifacts."""
    return folder / "logs" / f"runner-{index}.log"


def open_log(path: Path) -> BinaryIO:
    """A runner's log, open for appending and locked; makes the folder.

    Raises:
        OutputError: It cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > KEPT_BYTES:
            os.replace(path, path.with_suffix(".old.log"))
        while True:
            stream = path.open("ab", buffering=0)
            with suppress(OSError):  # a file system without locks: then none is removed either
                fcntl.flock(stream, fcntl.LOCK_SH)
            if _names(path, stream):
                return stream
            stream.close()  # it was removed between the two calls
            path.parent.mkdir(parents=True, exist_ok=True)


def remove_unused(path: Path) -> None:
    """Remove a log that is empty and that no process has open; any other stays."""
    until = time.monotonic() + UNUSED_S
    with suppress(FileNotFoundError), path.open("r+b") as stream:
        while not _locked_alone(stream):
            if time.monotonic() > until:
                return
            time.sleep(UNUSED_S / 10)
        if _names(path, stream) and not path.stat().st_size:
            path.unlink()


def _locked_alone(stream: BinaryIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _names(path: Path, stream: BinaryIO) -> bool:
    """Whether the path is still the open file's."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def tail(path: Path, start: int = 0) -> str:
    """The last lines of a log.

    Args:
        path: The log.
        start: Bytes that belong to what came before, and are left out.
    """
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(min(start, size), size - TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:]).strip()
