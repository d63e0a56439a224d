"""What LoRA of HF `peft` starts from: searched, exported, trained, and loaded elsewhere."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import autopeft
from autopeft.study.records import TrialState

MakePath = Callable[..., Path]
STARTS = ("pissa", "pissa_niter_2", "olora", "mica", "orthogonal")
TEXTS = ["w1 w2 w30", "w3 w4 w5"]

_LOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, texts, folders = json.loads(sys.argv[1])
found = []
for folder in folders:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = PeftModel.from_pretrained(model, folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found.append(model(**tokens).logits.tolist())
print(json.dumps(found))
"""

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_a_trial_of_every_start_is_an_adapter_in_a_fresh_process(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    at = {"sites": ["query", "down"], "r": 4, "lora_alpha": 6}
    file = make_study(
        tmp_path,
        bert_folder,
        make_data(tmp_path / "data"),
        space={
            "methods": {
                "peft:LORA": at | {
                    "init_lora_weights": {"choice": [True, *STARTS]}, "layers": {"mode": "bits"},
                },
            },
        },
        objectives=[{"metric": "loss"}, {"metric": "trainable_params"}],
        training={"epochs": 1, "learning_rate": 1e-2},
        search={
            "searcher": "random", "initial": 1, "rungs": [1.0], "baselines": [],
            "enqueue": [
                {"peft:LORA": [at | {"layers": [0, 1], "init_lora_weights": start}]}
                for start in STARTS
            ],
        },
        budget={"trials": len(STARTS) + 2},
    )  # fmt: skip
    study = autopeft.search(file, storage=f"sqlite:///{tmp_path}/starts.db")
    assert {trial.state for trial in study.trials()} == {TrialState.COMPLETED}
    found = {}
    for trial in study.trials():
        group = trial.configuration.groups[0]
        if group.layers == (0, 1) and group.get("init_lora_weights") in STARTS:
            found.setdefault(group["init_lora_weights"], trial)
    assert set(found) == set(STARTS)
    folders, ours = [], []
    for start, trial in found.items():
        written, folder = tmp_path / f"{start}.yaml", tmp_path / start
        study.export(tmp_path / f"{start}-peft", trial=trial.number, format="peft")
        told = json.loads((tmp_path / f"{start}-peft" / "adapter_config.json").read_text())
        assert (told["init_lora_weights"], told["r"]) == (start, 4)  # for peft to train
        study.export(written, trial=trial.number)
        (group,) = yaml.safe_load(written.read_text())["configuration"]["peft:LORA"]
        assert group["init_lora_weights"] == start
        metrics = autopeft.train(written, folder)
        loss = trial.objectives["loss"]
        assert metrics["validation"]["loss"] == pytest.approx(loss, abs=1e-5)
        assert metrics["forms"] == ["autopeft", "peft"]
        ours.append(autopeft.load(folder).logits(TEXTS))
        folders.append(str(folder))
    given = json.dumps([str(bert_folder), TEXTS, folders])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LOAD, given],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    theirs = np.array(json.loads(done.stdout.splitlines()[-1]))
    assert np.allclose(theirs, ours, atol=1e-5)
    apart = [np.abs(theirs[i] - theirs[j]).max() for i in range(5) for j in range(i)]
    assert min(apart) > 1e-4
