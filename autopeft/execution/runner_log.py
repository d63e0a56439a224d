"""The log of a runner: a file under the study's artifacts, and its last lines for people."""

import os
from pathlib import Path
from typing import BinaryIO

from autopeft.study.disk import writing

KEPT_BYTES = 4 << 20
"""A log that has grown beyond this begins anew; the one before it is kept beside it."""

TAIL_BYTES = 8192
TAIL_LINES = 20


def log_path(folder: Path, index: int) -> Path:
    """Where a runner's log lies within a study's artifacts."""
    return folder / "logs" / f"runner-{index}.log"


def open_log(path: Path) -> BinaryIO:
    """A runner's log, open for appending; makes the folder.

    Raises:
        OutputError: It cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > KEPT_BYTES:
            os.replace(path, path.with_suffix(".old.log"))
        return path.open("ab", buffering=0)


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
