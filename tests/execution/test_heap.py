"""How the heap of processes that run packs is set up."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autopeft.execution import worker_materials
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


A_PACK_AND_ANOTHER = """
import ctypes
from autopeft.execution.heap import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) // 256
tensors = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(64)]
for each in tensors:
    ctypes.memset(each, 1, 1 << 20)
for each in tensors:
    libc.free(each)
before = resident()
give_back()
print(before - resident())
"""

TENSORS_AMONG_SMALL_ONES = """
import ctypes, sys
from autopeft.execution.heap import tensors_apart
if sys.argv[1] == "apart":
    assert tensors_apart()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
at = ctypes.c_void_p()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) // 256
tensors = []
for _ in range(64):
    libc.posix_memalign(ctypes.byref(at), ctypes.c_size_t(64), ctypes.c_size_t(1 << 20))
    ctypes.memset(at.value, 1, 1 << 20)
    tensors.append(at.value)
    libc.malloc(ctypes.c_size_t(20_000))
before = resident()
for each in tensors:
    libc.free(each)
print(before - resident())
"""


def said(program: str, environment: dict[str, str], *words: str) -> int:
    """The number that a program prints."""
    command = [sys.executable, "-c", program, *words]
    return int(subprocess.check_output(command, env=environment, text=True))


def same_place(environment: dict[str, str]) -> int:
    """How many of 8 tensors, given back between others, come to lie where they lay."""
    return said(TENSORS_TWICE, environment)


@GLIBC
def test_a_tensor_s_hole_takes_the_next_one_of_its_size() -> None:
    bare = {name: value for name, value in os.environ.items() if name != VARIABLE}
    closed = same_place(with_heap(bare))
    assert closed >= 5
    assert same_place(bare) < closed


def test_what_the_user_has_set_comes_last_and_stays() -> None:
    own = with_heap({"A": "b"})
    assert own["A"] == "b"
    assert len(own[VARIABLE].split(":")) == len(SETTINGS)
    both = with_heap({VARIABLE: "glibc.malloc.tcache_count=7"})[VARIABLE]
    assert both == own[VARIABLE] + ":glibc.malloc.tcache_count=7"


def test_runners_have_it(tmp_path: Path) -> None:
    says = f"import os, sys; print(os.environ['{VARIABLE}'], file=sys.stderr)"
    runner = RunnerProcess([sys.executable, "-c", says], tmp_path / "runner.log")
    runner.close()
    assert "glibc.malloc.tcache_count=0" in runner.last_lines()


@GLIBC
def test_what_a_pack_leaves_in_the_heap_is_given_back() -> None:
    assert said(A_PACK_AND_ANOTHER, with_heap(os.environ)) > 60  # MiB


@GLIBC
def test_tensors_apart_go_back_one_by_one() -> None:
    own = with_heap(os.environ)
    assert said(TENSORS_AMONG_SMALL_ONES, own, "together") < 4  # MiB
    assert said(TENSORS_AMONG_SMALL_ONES, own, "apart") > 60


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_runners_that_recompute_layers_on_a_cpu_keep_tensors_apart(
    device: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise SeenError

    calls: list[bool] = []
    monkeypatch.setattr(worker_materials, "tensors_apart", lambda: calls.append(True))
    monkeypatch.setattr(worker_materials, "parse_definition", load)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    fields = ("definition", "output_dir", "activations", "precision", "micro_batch_size")
    asked = dict.fromkeys((*fields, "probes", "importance", "fingerprints"), "")
    own = {"device": device, "index": 0, "runners": 1, "gradient_checkpointing": checkpointing}
    with pytest.raises(SeenError):
        worker_materials.build_runner({**asked, **own})
    assert bool(calls) == (checkpointing and device == "cpu")
