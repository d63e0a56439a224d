"""Free memory: of the machine, of a container, and what of it a pack may take."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_backbones as tiny
import torch

from autopeft.configuration import Configuration, Group
from autopeft.execution import fitting
from autopeft.execution.fitting import (
    fitted_settings,
    free_bytes,
    lanes_that_fit,
    pack_estimate,
    step_overhead,
)
from autopeft.study.blocks import TrainingBlock
from autopeft.training import machine
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.loop import Trainer
from autopeft.training.memory import GLIBC_OVERHEAD
from autopeft.training.settings import LoopSettings
from autopeft.training.step_shape import Overhead

CPU = torch.device("cpu")
GROUP = Group.of("lora", [0, 1, 2], ["query"], rank=2, alpha=4.0, dropout=0.0)
REST = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_ratio": 0.0}
ONE = Configuration.of([GROUP], training=REST)


@pytest.fixture
def small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 KiB available and no control group."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(fitting, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


def test_what_is_available_is_free(small_machine: Path) -> None:
    assert free_bytes(CPU) == 1000 * 1024
    (small_machine / "memory.max").write_text("max\n")
    (small_machine / "memory.current").write_text("77\n")
    assert free_bytes(CPU) == 1000 * 1024


def test_a_container_has_less_than_its_machine(small_machine: Path) -> None:
    (small_machine / "memory.max").write_text("5000\n")
    (small_machine / "memory.current").write_text("2000\n")
    assert free_bytes(CPU) == 3000


def test_without_either_half_the_machine_counts(small_machine: Path) -> None:
    (small_machine / "meminfo").unlink()
    assert (free_bytes(CPU) or 0) > 2**28


def _trainer_of_eight_rows() -> Trainer:
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(4, 64, 8).astype(np.int32) for _ in range(16))
    examples = Examples(ids, rng.integers(0, 3, 16))
    backbone = tiny.tiny_backbone("bert", torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    settings = LoopSettings("sequence-classification", ("loss",), 3, 8, 8)
    data = TaskData(examples, examples, ("a", "b", "c"), "", ())
    return Trainer(backbone, data, settings, study_seed=0)


def test_a_pack_keeps_the_margin(small_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer_of_eight_rows()
    five = pack_estimate([ONE] * 5, trainer).training
    for free, lanes in ((five / 0.85 + 10, 5), (five / 0.85 - 10_000, 4), (1, 0)):
        monkeypatch.setattr(fitting, "free_bytes", lambda device, free=free: round(free))
        assert lanes_that_fit(ONE, trainer) == lanes
    monkeypatch.setattr(fitting, "free_bytes", lambda device: None)
    assert lanes_that_fit(ONE, trainer) is None


def test_a_pack_of_this_process_leaves_the_holes_of_glibc_s_heap(
    small_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer_of_eight_rows()
    runner, own = (
        pack_estimate([ONE] * 5, trainer, in_process=in_process) for in_process in (False, True)
    )
    step = own.activations + own.working  # no trunk: lanes train in the first layer
    assert replace(own, overhead=0) == replace(runner, overhead=0)
    assert own.overhead == GLIBC_OVERHEAD.fixed + round(step * GLIBC_OVERHEAD.share)
    assert own.overhead > runner.overhead
    assert step_overhead(torch.device("cuda"), in_process=True) == Overhead()
    monkeypatch.setattr(fitting, "free_bytes", lambda device: round(own.training / 0.85 - 10_000))
    assert lanes_that_fit(ONE, trainer, in_process=True) == 4
    assert lanes_that_fit(ONE, trainer) == 5
    enough = round(runner.training / 0.85 + 10_000)
    monkeypatch.setattr(fitting, "free_bytes", lambda device: enough)
    training = TrainingBlock(batch_size=8)
    for in_process in (False, True):
        found = fitted_settings(trainer, ONE, training, lanes=5, in_process=in_process)
        assert found.gradient_checkpointing == in_process


@pytest.mark.parametrize(
    ("keys", "free", "expected"),
    [
        ({}, "all", (False, 8)),
        ({}, "recomputed", (True, 8)),
        ({}, "fewer rows", (True, 4)),
        ({"gradient_checkpointing": False}, "four rows", (False, 4)),
        ({"micro_batch_size": 4}, "fewer rows", (True, 8)),
        ({}, "nothing", (True, 1)),
    ],
)
def test_what_is_left_open_gives_way_to_memory(
    keys: dict[str, object],
    free: str,
    expected: tuple[bool, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = _trainer_of_eight_rows()

    def needed(checkpointing: bool, rows: int) -> int:
        tried = copy.copy(trainer)
        tried.settings = replace(
            trainer.settings, gradient_checkpointing=checkpointing, micro_batch_size=rows
        )
        return pack_estimate([ONE] * 2, tried).training

    bytes_free = {
        "all": needed(False, 8),
        "recomputed": needed(True, 8),
        "fewer rows": needed(True, 4),
        "four rows": needed(False, 4),
        "nothing": 1,
    }[free]
    assert needed(True, 4) < needed(True, 8) < needed(False, 8)
    assert needed(False, 4) < needed(False, 8)
    monkeypatch.setattr(fitting, "free_bytes", lambda device: round(bytes_free / 0.85 + 10))
    training = TrainingBlock(batch_size=8, **keys)
    found = fitted_settings(trainer, ONE, training, lanes=2)
    assert (found.gradient_checkpointing, found.micro_batch_size) == expected


def test_a_lone_lane_that_does_not_fit_gives_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 1)
    found = fitted_settings(_trainer_of_eight_rows(), ONE, TrainingBlock(batch_size=8), lanes=1)
    assert (found.gradient_checkpointing, found.micro_batch_size) == (True, 1)
