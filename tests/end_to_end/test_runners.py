"""A search in runners of their own finds, bit for bit, what it finds in one process."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from warm_processes import WarmProcess

from autopeft.backbone import files
from storage import open_store

Make = Callable[..., Path]
EXECUTORS = ("in-process", "local", *(["ray"] if importlib.util.find_spec("ray") else []))
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


DEFAULT = {
    "study.name": "default",
    "training.max_steps": 20,
    # As many lanes, in the same type: else the machine's speed and free memory would decide.
    "training.precision": "fp32",
    "search.pack": 4,
}


def found(folder: Path, name: str = "tiny") -> list[Any]:
    """All that was measured of every trial, with all digits."""
    with open_store(f"sqlite:///{folder}/autopeft.db", read_only=True) as store:
        return [
            (trial.number, trial.hash, trial.state, trial.objectives, store.curve(name, n))
            for n, trial in enumerate(store.trials(name))
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
    for executor in EXECUTORS:
        folder = tmp_path / executor
        folder.mkdir()
        execution = {"executor": executor, "devices": "cpu", "ray": {"address": "local"}}
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
    here, ours = found(tmp_path / "in-process"), saved(tmp_path / "in-process")
    assert len(here) >= 3
    for executor in EXECUTORS[1:]:
        assert found(tmp_path / executor) == here, executor
        theirs = saved(tmp_path / executor)
        assert theirs.keys() == ours.keys()
        for name, tensors in ours.items():
            assert tensors.keys() == theirs[name].keys()
            assert all(torch.equal(tensors[key], theirs[name][key]) for key in tensors), name
        logs = list((tmp_path / executor).glob("autopeft-runs/tiny/logs/runner-0.log"))
        assert logs, "no runner of its own has trained"


@pytest.mark.slow
@pytest.mark.skipif("ray" not in EXECUTORS, reason="needs the extra autopeft[ray]")
@pytest.mark.skipif(files._package_folder() is None, reason="needs the extra autopeft[demo]")
def test_the_embedded_default_has_the_same_front_on_ray(
    tmp_path: Path, cli: Callable[..., str], start_cli: Callable[..., WarmProcess]
) -> None:
    given = [word for key, value in DEFAULT.items() for word in ("--set", f"{key}={value}")]
    fronts = {}
    for executor in EXECUTORS[1:]:
        folder = tmp_path / executor
        folder.mkdir()
        where = ["--executor", executor, *(["--ray-address", "local"] * (executor == "ray"))]
        process = start_cli(folder, "search", *given, "--trials", "3", "--quiet", *where)
        out, err = process.communicate(timeout=1200)
        assert process.returncode == 0, out + err
        fronts[executor] = json.loads(cli(folder, "front", "default", "--json"))
        with open_store(f"sqlite:///{folder}/autopeft.db", read_only=True) as store:
            assert store.study("default").definition["execution"]["executor"] == executor
    here = found(tmp_path / "local", "default")
    assert len(here) == 6, "three baselines and three of its own"
    assert all(objectives["accuracy"] is not None for *_, objectives, _ in here)
    assert found(tmp_path / "ray", "default") == here
    assert fronts["local"]
    assert fronts["ray"] == fronts["local"]
