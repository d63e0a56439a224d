"""Disks that are full or fail: told from other errors, and written through to.

What a trial trains is never to blame for them, so an error that tells of one becomes an
`OutputError`: it says where, and how much is free there.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopeft.errors import AutopeftError, OutputError

FAULTS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE))
"""Error numbers that tell of a disk, whatever was done: full, over its quota, broken, gone."""

HINT = "free some space there, or make it writable; the same command goes on"

_NO_FOLDERS = frozenset((errno.EINVAL, errno.ENOTSUP))
_TOLD_BY_RUST = re.compile(r"\(os error (\d+)\)")


def os_error(error: Exception) -> OSError | None:
    """The system's error that an error is or quotes (as safetensors does); None for all others."""
    if isinstance(error, AutopeftError):
        return None
    if isinstance(error, OSError):
        return error
    quoted = _TOLD_BY_RUST.search(str(error))
    return OSError(int(quoted[1]), os.strerror(int(quoted[1]))) if quoted else None


def disk_fault(error: Exception, place: Path | None = None) -> OutputError | None:
    """The error as one of a disk, or None where it is something else.

    Args:
        error: Any.
        place: Where it was to write, or None: then all depends on the error's number, and it
            names the place itself.
    """
    found = os_error(error)
    if found is None or (place is None and found.errno not in FAULTS):
        return None
    where = place or Path(os.fsdecode(found.filename or os.getcwd()))
    reason = found.strerror or type(error).__name__
    return OutputError(f"{where}: {reason[:1].lower()}{reason[1:]} ({room(where)})", hint=HINT)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Whatever the system refuses within the block is the place's fault.

    Raises:
        OutputError: In its stead.
    """
    try:
        yield
    except Exception as error:
        if (fault := disk_fault(error, place)) is None:
            raise
        raise fault from error


def room(place: Path) -> str:
    """What is free where a file or folder is, or is to be: `1.5 MiB free`."""
    there = next((each for each in (place, *place.parents) if each.exists()), Path.cwd())
    try:
        told = f"{shutil.disk_usage(there).free / 2**20:,.1f} MiB free"
        found = os.statvfs(there)
    except (OSError, AttributeError):  # the disk itself is gone, or no POSIX system
        return "nobody knows what is free"
    return f"{told}, but no inode" if found.f_files and not found.f_favail else told


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, reach the disk.

    A rename may get there before what was renamed: after a power failure there would be a file
    of the right name with nothing in it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:  # some file systems sync files alone
            raise
    finally:
        os.close(descriptor)
