"""Steady steps: a trainer on one batch that does not change, and how long its steps take.

Every step has the same shape, so that a repeat differs from another by noise alone, and a GPU
replays what it has captured.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch

from autopeft.training.activations import CacheBudget
from autopeft.training.batches import steps_per_epoch
from autopeft.training.data.examples import TaskData
from autopeft.training.loop import PackRun, Trainer

Rows: TypeAlias = np.ndarray
"""Numbers of the examples of one batch, int64 [B]."""


def middling_batch(trainer: Trainer) -> Rows:
    """The whole batch of middling length among the study's first epoch."""
    whole = _whole_batches(trainer)
    return sorted(whole, key=trainer.train.width)[len(whole) // 2]


def longest_batch(trainer: Trainer) -> Rows:
    """The longest whole batch of the study's first epoch."""
    return max(_whole_batches(trainer), key=trainer.train.width)


def _whole_batches(trainer: Trainer) -> list[Rows]:
    epoch = trainer.order(0, steps_per_epoch(len(trainer.train), trainer.settings.batch_size))
    most = max(len(rows) for rows in epoch)
    return [rows for rows in epoch if len(rows) == most]


def steady_trainer(
    trainer: Trainer, data: TaskData, rows: Rows, *, precision: str, steps: int
) -> Trainer:
    """A trainer of its own that keeps no activations, on one batch.

    Args:
        trainer: The study's.
        data: The study's.
        rows: The batch.
        precision: `fp32` or `bf16`.
        steps: At most so many can be taken.
    """
    settings = replace(
        trainer.settings, precision=precision, total_steps=steps, cache=CacheBudget()
    )
    only = replace(data, train=data.train.rows(rows))
    return Trainer(trainer.backbone, only, settings, study_seed=trainer.study_seed)


def timed_steps(
    run: PackRun,
    steps: int,
    device: torch.device,
    *,
    go_on: Callable[[], bool] = lambda: True,
) -> list[float]:
    """Seconds of each of the next steps.

    Args:
        run: Takes them.
        steps: How many.
        device: Waited for after each.
        go_on: Asked between two of them; False leaves the rest out.
    """
    until, marks = run.step + steps, [time.perf_counter()]

    def mark(step: int) -> bool:
        wait_for(device)  # else a step's time is that of its launches
        marks.append(time.perf_counter())
        return step == until or go_on()

    run.train(until, on_step=mark)
    return [after - before for before, after in pairwise(marks)]


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
