"""What this machine, or the container that it seems to be, has of memory."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
VMSTAT = Path("/proc/vmstat")


def container_limit() -> int | None:
    """Bytes that a control group allows; None where there is none, or no limit."""
    try:
        return int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):
        return None


def left_in_container() -> int | None:
    """What a control group leaves of its limit: the machine's own figures know nothing of it."""
    limit = container_limit()
    if limit is None:
        return None
    try:
        return max(0, limit - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return None


def memory_bytes() -> int:
    """All memory of the machine or the container, free or not."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, container_limit() or physical)


def boot() -> str:
    """What tells this run of the operating system from others; "" where it does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory, here or in this container."""
    counted = 0
    for path in (CGROUP / "memory.events", VMSTAT):
        try:
            lines = [line.split() for line in path.read_text().splitlines()]
            counted = max(counted, *(int(n) for name, n in lines if name == "oom_kill"))
        except (OSError, ValueError, TypeError):
            continue
    return counted
