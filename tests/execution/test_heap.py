"""How the heap of processes that run packs is set up."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.execution.heap import SETTINGS, VARIABLE, with_heap
from autopeft.execution.runner_process import RunnerProcess

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")

TENSORS_TWICE = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
at = ctypes.c_void_p()
def tensor():
    libc.posix_memalign(ctypes.byref(at), ctypes.c_size_t(64), ctypes.c_size_t(100_000))
    return at.value
same = 0
for _ in range(8):
    first = tensor()
    libc.malloc(ctypes.c_size_t(20_000))
    libc.free(first)
    same += tensor() == first
print(same)
"""


def same_place(environment: dict[str, str]) -> int:
    """How many of 8 tensors, given back between others, come to lie where they lay."""
    command = [sys.executable, "-c", TENSORS_TWICE]
    return int(subprocess.check_output(command, env=environment, text=True))


@GLIBC
def test_a_tensor_s_hole_takes_the_next_one_of_its_size() -> None:
    bare = {name: value for name, value in os.environ.items() if name != VARIABLE}
    assert same_place(with_heap(bare)) >= 5
    assert same_place(bare) <= 1


def test_what_the_user_has_set_comes_last_and_stays() -> None:
    own = with_heap({"A": "b"})
    assert own["A"] == "b"
    assert len(own[VARIABLE].split(":")) == len(SETTINGS)
    both = with_heap({VARIABLE: "glibc.malloc.tcache_count=7"})[VARIABLE]
    assert both == own[VARIABLE] + ":glibc.malloc.tcache_count=7"


def test_runners_have_it(tmp_path: Path) -> None:
    said = f"import os, sys; print(os.environ['{VARIABLE}'], file=sys.stderr)"
    runner = RunnerProcess([sys.executable, "-c", said], tmp_path / "runner.log")
    runner.close()
    assert "glibc.malloc.tcache_count=0" in runner.last_lines()
