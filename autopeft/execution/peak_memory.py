"""Peak memory: of a pack as it runs among others, and of one piece of work by itself.

A pack's is the device's where it has its own, else this process's resident set: what the machine
had to give, with all that happened to be there. What a piece of work takes by itself is counted in
tensors, so that it depends on nothing that came before it.
"""

import gc
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autopeft.execution.heap import give_back

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"


def reset_peak(device: torch.device) -> None:
    """Count the peak from now on, where the system can; elsewhere it stays the process's own.

    What earlier work has left in the heap does not count.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back()
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return  # not Linux, or a container that forbids it


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak since `reset_peak`: allocated on the GPU, or resident in memory.

    Both hold the backbone and, resident, all that the process has loaded.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0


# -- of one piece of work -------------------------------------------------------------------------

MEASURABLE = ("cpu", "cuda")
"""Devices on which `added_peak` is known to tell the truth."""


@contextmanager
def added_peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """What the block adds to the tensors on a device, at its peak; asked by calling what it gives.

    On a GPU that is its allocator's count, on a CPU the storages that operations bring forth. The
    latter misses what an operation takes and gives back within itself; on BERT-like training it
    agrees with the allocator's own trace to 0.001 %, and repeats to the byte, where the resident
    set varies by a tenth with what the heap has kept.

    Args:
        device: Of a type in `MEASURABLE`.
    """
    if device.type not in MEASURABLE:
        raise ValueError(f"the peak of {device.type} is not measured")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        reset_peak(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    with _LiveStorages() as storages:
        yield lambda: storages.peak


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make and that still live.

    Attributes:
        peak: Their bytes at the peak.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(outputs):
            if storage._cdata not in given:
                self._born(storage)
        return outputs

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live or not storage.nbytes():
            return
        self._live[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._live.pop(key)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """Of all tensors but sparse ones, which have none, and those without values.

    The parts of sparse ones are tensors of their own; those on `meta` are shapes and take nothing.
    """
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [t.untyped_storage() for t in tensors if t.layout is torch.strided and not t.is_meta]
