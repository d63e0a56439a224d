"""What the file system says about a SQLite database, before SQLite says less about it.

SQLite answers "unable to open database file" to most mistakes, and its write-ahead log silently
breaks on network file systems, whose clients share no memory. Both are found out here.
"""

import os
from pathlib import Path

from autopeft.errors import StorageError

NETWORK = frozenset(
    (
        "9p",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    )
)
"""File systems on which several hosts may see one file."""

MOUNTS = Path("/proc/mounts")


def check_file(path: Path, *, create: bool, writable: bool) -> None:
    """Raises StorageError where a SQLite database cannot be opened (or created) at `path`."""
    if path.is_dir():
        raise StorageError(f"{path}: it is a folder", hint="name a file in it")
    if not path.parent.is_dir():
        raise StorageError(
            f"{path}: the folder {path.parent} does not exist", hint="make it first"
        )
    if not path.exists() and not create:
        raise StorageError(
            f"{path}: there is no database",
            hint="`autopeft search` creates it; another place is named by --storage or "
            "AUTOPEFT_STORAGE (by SRC in `autopeft db copy`)",
        )
    # SQLite keeps a journal beside the file, so that to write is to write in the folder.
    if writable and not _allowed(path.parent, os.W_OK | os.X_OK):
        raise StorageError(
            f"{path}: the folder {path.parent} cannot be written", hint="check its permissions"
        )
    needed = os.R_OK | os.W_OK if writable else os.R_OK
    if path.exists() and not _allowed(path, needed):
        raise StorageError(
            f"{path}: the file cannot be {'written' if writable else 'read'}",
            hint="check its permissions",
        )


def identity(path: Path) -> tuple[int, int] | None:
    """What tells the file at `path` from another one put in its place; None where none is."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the network file system that holds `path`, or None on a local disk.

    Where the system has no table of mounts (macOS), every disk counts as local.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return None
    place, kind = Path("/"), ""
    for line in lines:
        _, point, fstype, *_ = line.split(" ")
        mounted = Path(_unescaped(point))
        # A later mount on the same point hides the earlier one.
        if path.resolve().is_relative_to(mounted) and len(mounted.parts) >= len(place.parts):
            place, kind = mounted, fstype
    return kind if kind in NETWORK else None


def _allowed(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _unescaped(point: str) -> str:
    """A mount point as written by the kernel: blanks and backslashes are octal escapes."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
