"""Instruction data from a file to an adapter that answers: every command, as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_causal
import torch
import yaml

import autopeft

Cli = Callable[..., str]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """A folder with a finished study: the answer is the word after the prompt's first."""
    folder = tmp_path_factory.mktemp("answers")
    tiny_causal.save(tiny_causal.tiny_causal("llama", torch.float32), folder / "model")
    rng = np.random.default_rng(0)
    words = [rng.integers(20, 30, rng.integers(2, 6)) for _ in range(120)]
    rows = [
        {
            "prompt": " ".join(f"w{word}" for word in row),
            "completion": f"w{row[0] + 1}",
            "candidates": [f"w{row[0] + 1}", f"w{row[0] + 2}"],
        }
        for row in words
    ]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    study = {
        "schema": "autopeft/v1",
        "study": {"name": "answers"},
        "model": {"name_or_path": "model", "task": "causal-lm"},
        "data": {
            "source": "data.jsonl",
            "format": "prompt-completion",
            "prompt": "prompt",
            "completion": "completion",
            "choices": "candidates",
            "splits": {"train": "train", "validation": 0.25},
            "max_length": 12,
        },
        "training": {"epochs": 6, "batch_size": 16, "precision": "fp32"},
        "objectives": [{"metric": "choice_accuracy"}, {"metric": "trainable_params"}],
        "space": {
            "schema": "autopeft/space/v1",
            "methods": {
                "lora": {"rank": {"choice": [1, 2, 4]}, "sites": ["query", "value", "up"]}
            },
            "training": {"learning_rate": {"float": [1e-3, 3e-2], "log": True}},
        },
        "search": {"searcher": "random", "pack": 3, "initial": 3, "baselines": []},
        "budget": {"trials": 6},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    cli(folder, "search", "study.yaml", "--json")
    return folder


def test_what_was_searched_is_trained_again_and_answers(answered: Path, cli: Cli) -> None:
    status = json.loads(cli(answered, "status", "--json"))
    assert status["trials"]["completed"] + status["trials"]["stopped"] == 6
    best = json.loads(cli(answered, "front", "--json"))[-1]
    assert best["head_params"] == 0
    cli(answered, "export", "--trial", str(best["trial"]), "-o", "best.yaml")
    metrics = json.loads(cli(answered, "train", "best.yaml", "-o", "adapter", "--json"))
    found = metrics["validation"]
    assert found["choice_accuracy"] == pytest.approx(best["objectives"]["choice_accuracy"])
    assert {"loss", "token_accuracy", "exact_match"} <= set(found)
    model = autopeft.load(answered / "adapter")
    rows = [json.loads(line) for line in (answered / "data.jsonl").read_text().splitlines()]
    answers = model.generate([row["prompt"] for row in rows[:40]], max_new_tokens=3)
    right = [a.split()[:1] == [row["completion"]] for a, row in zip(answers, rows, strict=False)]
    assert np.mean(right) > 0.2, "ten answers are possible"


def test_a_profile_tells_what_a_trial_took(answered: Path, cli: Cli) -> None:
    shown = json.loads(cli(answered, "show", "0", "--json"))
    profile = shown["profile"]
    assert profile["optimizer_steps"] > 0
    assert profile["samples"] > profile["optimizer_steps"]
    seconds = ("train_seconds", "evaluation_seconds", "loading_seconds", "waiting_seconds")
    assert all(profile[name] >= 0 for name in seconds)
    assert profile["peak_memory_bytes"] > 1 << 20
