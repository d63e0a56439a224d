"""How glibc's heap is set up where packs run: for holes that close again.

torch asks for tensors at addresses divisible by 64. Before it has looked, glibc cannot know
whether a hole will do, so it wants one that is 96 bytes longer than the tensor, and gives the ends
back. It puts them aside for small objects; once one of these has taken an end, the hole that the
tensor leaves is too short for the next tensor of its size. With ends that are not put aside, most
holes close again, and the holes at a pack's peak shrink from 50-90 % of its step's tensors to the
share that the memory model knows (`training.memory.RESIDENT_OVERHEAD`).

Only a process that begins can be told, and only glibc listens. One that trains packs itself
(`executor: in-process`) has glibc's own heap (`training.memory.GLIBC_OVERHEAD`).

Where layers are recomputed, tensors of all sizes come and go among those that stay, and even then
holes of once or twice what a pack holds were left, never the same twice. There every larger tensor
gets pages of its own (`tensors_apart`), which go back with it: the memory of a pack that is meant
to be small is small, and known. It costs time, since new pages have to be had (docs/results.md).
"""

import ctypes
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"

_LARGEST_THRESHOLD = 32 << 20

_OWN_PAGES = 256 << 10
"""Bytes from which on a tensor has pages of its own, where tensors are kept apart."""

_M_MMAP_THRESHOLD = -3
"""Its number in glibc's malloc.h."""

SETTINGS = {
    "tcache_count": 0,
    "mxfast": 0,
    # Where glibc's own adapting thresholds end up; once set, they stay.
    "mmap_threshold": _LARGEST_THRESHOLD,
    # No step gives pages back that the next one wants.
    "trim_threshold": 1 << 40,
}
"""Of `glibc.malloc`, in bytes: nothing is put aside, thresholds are fixed."""


def with_heap(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that runs packs; what the user has set stays as it is.

    Args:
        environment: Of this process.
    """
    given = environment.get(VARIABLE)
    own = [f"glibc.malloc.{name}={value}" for name, value in SETTINGS.items()]
    return {**environment, VARIABLE: ":".join([*own, *([given] if given else [])])}


def tensors_apart() -> bool:
    """From now on larger tensors of this process share no heap; whether the system can do that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES))


def give_back() -> None:
    """Give the system what the heap keeps of earlier packs, where glibc can be asked to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
