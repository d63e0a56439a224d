"""Types of HF `peft` that stand before a text or below the layers, from a study to `peft`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.errors import InputError
from autopeft.study.records import TrialState

MakePath = Callable[..., Path]
PAIRS = [("w1 w2", "w30"), ("w3 w4 w5", "w6 w2")]
TRIALS: dict[str, dict[str, Any]] = {
    "peft:P_TUNING": {"layers": [0], "num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "peft:PREFIX_TUNING": {"layers": [0, 1], "num_virtual_tokens": 2, "prefix_projection": True},
    "peft:TRAINABLE_TOKENS": {"layers": [0], "token_indices": "2 4-43"},
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
    "ignore:Token type ids are not supported:UserWarning",
)


def test_a_trial_becomes_an_adapter_that_peft_loads(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = make_study(
        tmp_path,
        bert_folder,
        make_data(tmp_path / "data", pairs=True),
        objectives=[{"metric": "loss"}, {"metric": "trainable_params"}],
        training={"epochs": 1, "learning_rate": 1e-2},
        search={
            "searcher": "random", "initial": 1, "rungs": [1.0], "baselines": [],
            "enqueue": [{name: [own]} for name, own in TRIALS.items()],
        },
        budget={"trials": len(TRIALS)},
    )  # fmt: skip
    plain = yaml.safe_load(file.read_text())
    plain["data"]["text"] = ["text", "text2"]
    file.write_text(yaml.safe_dump(plain))
    study = autopeft.search(file, storage=f"sqlite:///{tmp_path}/passed.db")
    assert {trial.state for trial in study.trials()} == {TrialState.COMPLETED}
    found = {trial.configuration.methods[0]: trial for trial in study.trials()}
    counts = {name: trial.objectives["trainable_params"] for name, trial in found.items()}
    assert counts == dict(zip(TRIALS, (3 * 32, 2 * 2 * 2 * 32, 41 * 32), strict=True))
    trial, file, folder = found["peft:PREFIX_TUNING"], tmp_path / "own.yaml", tmp_path / "own"
    study.export(file, trial=trial.number)
    metrics = autopeft.train(file, folder)
    assert metrics["validation"]["loss"] == pytest.approx(trial.objectives["loss"], abs=1e-5)
    assert metrics["forms"] == ["autopeft", "peft"]
    wrong = yaml.safe_load(file.read_text())
    at = {"layers": [0], "length": 2}
    wrong["configuration"] = {"prompt": [at], "dept": [{**at, "rank": 1, "positions": 16}]}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(InputError) as caught:
        autopeft.train(tmp_path / "wrong.yaml", tmp_path / "wrong")
    assert [fault.key for fault in caught.value.faults] == ["configuration.prompt.layers"]
    ours = autopeft.load(folder).logits(PAIRS)
    assert np.allclose(_through_peft(bert_folder, folder), ours, atol=1e-5)


def _through_peft(base: Path, folder: Path) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = PeftModel.from_pretrained(model, folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(*zip(*PAIRS, strict=True), padding=True)
    with torch.no_grad():
        given = {name: torch.tensor(rows) for name, rows in tokens.items()}
        logits: torch.Tensor = theirs(**given).logits
    return logits.numpy()
