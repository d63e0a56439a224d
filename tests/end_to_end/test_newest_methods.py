"""A search of methods that change activations, attention and prompts, from the file and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.study.records import TrialState

MakePath = Callable[..., Path]
LAYERS = [0, 1]
METHODS: dict[str, dict[str, Any]] = {
    "adamix": {"layers": LAYERS, "size": 2, "experts": 2},
    "adapter_plus": {"layers": LAYERS, "size": 2},
    "aligner": {"layers": LAYERS, "length": 2},
    "compacter": {"layers": LAYERS, "rank": 1, "bottleneck": 8},
    "moelora": {"layers": LAYERS, "rank": 1, "experts": 2, "top_k": 1},
    "prompt": {"layers": [0], "length": 2},
    "reft": {"layers": LAYERS, "rank": 2, "first": 1, "last": 1},
}
TRIALS = len(METHODS) + 1


def test_methods_that_are_more_than_a_change_of_weights(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each in a trial, and two in one, in several kinds of passes; an export trains alike."""
    monkeypatch.chdir(tmp_path)
    apart: list[dict[str, Any]] = [{name: [own]} for name, own in METHODS.items()]
    together = {name: [METHODS[name]] for name in ("adamix", "prompt")}
    file = make_study(
        tmp_path,
        bert_folder,
        make_data(tmp_path / "data"),
        objectives=[{"metric": "loss"}, {"metric": "trainable_params"}],
        training={"epochs": 1, "learning_rate": 1e-2},
        search={
            "searcher": "random",
            "initial": 1,
            "pack": TRIALS,
            "rungs": [1.0],
            "baselines": [],
            "enqueue": [*apart, together],
        },
        budget={"trials": TRIALS},
    )
    study = autopeft.search(file, storage=f"sqlite:///{tmp_path}/newest.db")
    trials = study.trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETED}
    found = {trial.configuration.methods: trial for trial in trials}
    assert set(found) == {*((name,) for name in METHODS), ("adamix", "prompt")}
    assert set(study.method_sources) >= set(METHODS)
    assert len({trial.objectives["loss"] for trial in trials}) == TRIALS, "each does something"
    chosen = found["adamix", "prompt"]
    out = tmp_path / "chosen.yaml"
    study.export(out, trial=chosen.number)
    assert autopeft.load_configuration(out).hash == chosen.hash
    metrics = autopeft.train(out, tmp_path / "adapter")
    assert metrics["validation"]["loss"] == pytest.approx(chosen.objectives["loss"], abs=1e-5)
    assert metrics["trainable_params"] == chosen.objectives["trainable_params"]
    texts = ["w1 w2", "w3 w4 w5"]
    assert len(autopeft.load(tmp_path / "adapter").predict(texts)) == 2
