"""One case: trains a pack for a few steps and evaluates it, and says what that took."""

import gc
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.memory import backbone_bytes
from autopeft.configuration import Configuration, Group
from autopeft.execution.fitting import pack_estimate
from autopeft.execution.heap import tensors_apart
from autopeft.execution.peak_memory import peak_bytes, reset_peak, resident_bytes
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.settings import LoopSettings
from benchmarks.memory.backbones import random_backbone
from benchmarks.memory.cases import Case
from benchmarks.memory.unmultiplied import Unmultiplied

STEPS = 3
"""On a GPU the first runs eagerly, the second is captured, the third replayed."""


def measure(case: Case, *, multiplies: bool = True, in_process: bool = False) -> dict[str, float]:
    """What a case is thought to take and what it takes, in bytes; its last step, in seconds.

    Args:
        case: Where it runs, and on what.
        multiplies: Whether products are computed (see `Unmultiplied`); only a CPU can do without.
        in_process: Whether this process's heap is as glibc has it, not as a runner's is set up.
    """
    device = torch.device(case.device)
    if case.limit_gib:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, case.limit_gib * 2**30 / whole))
    if case.device == "cpu" and case.checkpointing:
        tensors_apart()  # as a runner does
    bare = _taken(device)
    trainer = _trainer(case)
    anatomy = trainer.backbone.anatomy
    configurations = [_configuration(case, lane, anatomy) for lane in range(case.lanes)]
    with torch.no_grad():
        trainer.backbone.model(**trainer.train.batch(np.arange(2)).inputs)  # touches every weight
    reset_peak(device)
    before = _taken(device)
    with nullcontext() if multiplies else Unmultiplied():
        run = trainer.start([Lane(n, each) for n, each in enumerate(configurations)])
        run.train(STEPS - 1)
        step_s = _last_step_s(run, device)
        run.evaluate()
    expected = pack_estimate(configurations, trainer, in_process=in_process)
    return {
        "estimated": expected.training,
        "measured": peak_bytes(device) - before,
        "backbone_estimated": backbone_bytes(trainer.backbone),
        "backbone_measured": before - bare,
        "reserved": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0,
        "step_s": step_s,
        "replayed": run.replayed,
        **expected.to_dict(),
    }


def _taken(device: torch.device) -> int:
    """Bytes that this process has of a device's memory: tensors', or resident ones."""
    gc.collect()
    if device.type != "cuda":
        return resident_bytes()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def _last_step_s(run: PackRun, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run.train(STEPS)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _trainer(case: Case) -> Trainer:
    rng = np.random.default_rng(0)

    def examples(rows: int) -> Examples:
        ids = rng.integers(4, 900, (rows, case.tokens)).astype(np.int32)
        return Examples(tuple(ids), rng.integers(0, 3, rows))

    data = TaskData(examples(case.rows * STEPS), examples(64), ("a", "b", "c"), "", ())
    settings = LoopSettings(
        task="sequence-classification",
        metrics=("accuracy",),
        total_steps=STEPS,
        batch_size=case.rows,
        micro_batch_size=case.rows,
        precision=case.compute,
        gradient_checkpointing=case.checkpointing,
    )
    return Trainer(random_backbone(case), data, settings, study_seed=0)


def _configuration(case: Case, lane: int, anatomy: Anatomy) -> Configuration:
    layers = len(anatomy.layers)
    first = {"top": 2 * layers // 3, "last": layers - 1}.get(case.placement, 0)
    groups = [_lora(range(first, layers), ["query", "value"], 8)]
    if case.placement == "mixed":
        first = lane * layers // (2 * case.lanes)
        sites = ["query", "value", "up", "down"][: 1 + lane % 4]
        groups = [_lora(range(first, layers), sites, 4 << lane % 3, dropout=0.1 * (lane % 2))]
        if lane % 2:
            adapter: dict[str, Any] = {"activation": "relu", "scale": 1.0, "dropout": 0.0}
            groups += [
                Group.of("parallel_adapter", range(first, layers), ["ffn"], size=32, **adapter)
            ]
    rest = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    return Configuration.of(groups, training=rest)


def _lora(layers: range, sites: list[str], rank: int, dropout: float = 0.0) -> Group:
    return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=dropout)
