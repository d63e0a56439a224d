"""Trainers of tiny backbones on a few made-up rows, in float64."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import tiny_causal
import torch

from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

ROWS, BATCH = 7, 3
"""The last batch is smaller than the others."""

MakeTrainer = Callable[..., Trainer]


def rows(task: str, seed: int = 0, n: int = ROWS) -> Examples:
    rng = np.random.default_rng(seed)
    ids = tuple(rng.integers(3, 64, length).astype(np.int32) for length in rng.integers(3, 9, n))
    if task == "regression":
        return Examples(ids, rng.normal(size=n).astype(np.float32))
    if task == "causal-lm":
        targets = tuple(np.arange(len(row)) >= rng.integers(1, len(row)) for row in ids)
        return Examples(ids, np.zeros(n, dtype=np.int64), targets=targets)
    return Examples(ids, rng.integers(0, 3, n))


def backbone_for(name: str, task: str, dtype: torch.dtype) -> Backbone:
    if task == "causal-lm":
        return backbone_of(tiny_causal.tiny_causal(name, dtype))
    return tiny.tiny_backbone(name, dtype)


def trainer_of(
    name: str,
    task: str = "sequence-classification",
    *,
    dtype: torch.dtype = torch.float64,
    study_seed: int = 3,
    **changes: Any,
) -> Trainer:
    settings: dict[str, Any] = {
        "task": task,
        "metrics": ("loss",),
        "total_steps": 4,
        "batch_size": BATCH,
        "micro_batch_size": BATCH,
    }
    backbone = backbone_for(name, task, dtype)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    names = ("a", "b", "c") if task == "sequence-classification" else ()
    data = TaskData(rows(task), rows(task, 1), names, "d" * 64, ())
    return Trainer(backbone, data, LoopSettings(**settings | changes), study_seed=study_seed)


@pytest.fixture
def make_trainer() -> MakeTrainer:
    """`make_trainer(architecture, task, ...)`."""
    return trainer_of
