"""A search in runners of their own finds, bit for bit, what it finds in one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storage import open_store

Make = Callable[..., Path]
LORA = {"layers": [0, 1], "sites": ["query", "value", "up"], "rank": 2, "alpha": 4}
SEARCH = {
    "rungs": [0.5, 1.0],
    "stopping": "none",
    "pack": 4,
    "enqueue": [
        {"lora": [LORA]},
        {"lora": [LORA], "sparsity": {"rule": "spt", "budget": 0.5, "threshold": 8.0}},
        {"sparse": [{"layers": [0], "sites": ["up"], "density": 0.05}]},
    ],
}
"""Two of them are decided by importance, which runners get as a file."""


def found(folder: Path) -> list[Any]:
    """All that was measured of every trial, with all digits."""
    with open_store(f"sqlite:///{folder}/autopeft.db", read_only=True) as store:
        return [
            (trial.number, trial.hash, trial.state, trial.objectives, store.curve("tiny", n))
            for n, trial in enumerate(store.trials("tiny"))
        ]


def saved(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every lane's tensors, as they were saved last."""
    paths = folder.glob("autopeft-runs/tiny/states/*/cohort-*/step-*/*.safetensors")
    return {path.name: load_file(path) for path in paths}


@pytest.mark.slow
def test_runners_find_bit_for_bit_what_one_process_finds(
    tmp_path: Path, bert_folder: Path, make_data: Make, make_study: Make, cli: Callable[..., str]
) -> None:
    data = make_data(tmp_path / "data")
    for executor in ("in-process", "local"):
        folder = tmp_path / executor
        folder.mkdir()
        execution = {"executor": executor, "devices": "cpu"}
        make_study(
            folder,
            bert_folder,
            data,
            training={"epochs": 8},
            search=SEARCH,
            # Three baselines of 48 steps, then a cohort that waits at its first rung, saved.
            budget={"trials": 3, "optimizer_steps": 3 * 48 + 10},
            execution=execution,
        )
        cli(folder, "search", "study.yaml")
        assert saved(folder), "no lane state to compare"
    apart, here = found(tmp_path / "local"), found(tmp_path / "in-process")
    assert apart == here
    assert len(apart) >= 3
    theirs, ours = saved(tmp_path / "local"), saved(tmp_path / "in-process")
    assert theirs.keys() == ours.keys()
    for name, tensors in ours.items():
        assert tensors.keys() == theirs[name].keys()
        assert all(torch.equal(tensors[key], theirs[name][key]) for key in tensors), name
    logs = list((tmp_path / "local").glob("autopeft-runs/tiny/logs/runner-0.log"))
    assert logs, "no runner of its own has trained"
