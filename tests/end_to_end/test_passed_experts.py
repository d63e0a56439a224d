"""XLORA from a study to an adapter that answers, after the adapters that it mixes are gone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
import torch
import yaml
from peft import LoraConfig, get_peft_model

import autopeft
from autopeft.errors import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)
PROMPTS = [f"w{word} w{word + 3} w{word + 1}" for word in range(20, 28)]


def _study(folder: Path) -> dict[str, Any]:
    """A study of one trial over two adapters, of words that follow the prompt's first."""
    model = tiny.tiny_causal("llama", torch.float32)
    tiny.save(model, folder / "model")
    for number, maps in enumerate((["q_proj"], ["q_proj", "up_proj"])):
        torch.manual_seed(number)
        config = LoraConfig(r=2, target_modules=maps, init_lora_weights=False)
        theirs = get_peft_model(tiny.tiny_causal("llama", torch.float32), config)
        theirs.save_pretrained(folder / f"expert{number}")
    rows = [
        {"prompt": f"w{word} w{other}", "completion": f" w{word + 1}"}
        for word in range(20, 30)
        for other in range(30, 36)
    ]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    experts = f"{folder}/expert0, {folder}/expert1"
    return {
        "schema": "autopeft/v1",
        "study": {"name": "experts"},
        "model": {"name_or_path": "model", "task": "causal-lm"},
        "data": {
            "source": "data.jsonl", "format": "prompt-completion", "prompt": "prompt",
            "completion": "completion", "splits": {"train": "train", "validation": 0.25},
            "max_length": 12,
        },
        "training": {"epochs": 3, "batch_size": 16, "precision": "fp32", "learning_rate": 1e-2},
        "objectives": [{"metric": "loss"}, {"metric": "trainable_params"}],
        "space": {
            "schema": "autopeft/space/v1",
            "methods": {
                "peft:XLORA": {
                    "adapters": experts, "layers": {"mode": "all"}, "xlora_size": 8,
                    "xlora_depth": {"choice": [1, 2]}, "use_trainable_adapters": True,
                }
            },
        },
        "search": {"searcher": "random", "initial": 2, "rungs": [1.0], "baselines": []},
        "budget": {"trials": 2},
    }  # fmt: skip


def test_a_router_is_searched_trained_and_loaded_without_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = _study(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    found = autopeft.search(tmp_path / "study.yaml", storage=f"sqlite:///{tmp_path}/own.db")
    trials = {t.objectives["trainable_params"]: t for t in found.trials()}
    adapters = 2 * 2 * (2 * (32 + 32) + (32 + 48))  # r, layers, two at queries and one at `up`
    assert set(trials) == {adapters + 33 * 2, adapters + 33 * 8 + 9 * 2}
    trial = trials[adapters + 33 * 8 + 9 * 2]
    found.export(tmp_path / "own.yaml", trial=trial.number)
    metrics = autopeft.train(tmp_path / "own.yaml", tmp_path / "own")
    assert metrics["validation"]["loss"] == pytest.approx(trial.objectives["loss"], abs=1e-5)
    assert metrics["forms"] == ["autopeft"]
    with_files = autopeft.load(tmp_path / "own").generate(PROMPTS, max_new_tokens=4)
    for number in range(2):
        shutil.rmtree(tmp_path / f"expert{number}")
    model = autopeft.load(tmp_path / "own")
    assert model.generate(PROMPTS, max_new_tokens=4) == with_files
    assert len(set(with_files)) > 1
    with pytest.raises(InputError, match=r"without adapter_config\.json"):
        autopeft.train(tmp_path / "own.yaml", tmp_path / "again")


def test_what_is_no_expert_is_told_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = _study(tmp_path)
    shutil.rmtree(tmp_path / "expert1")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    for check in (autopeft.validate, autopeft.plan):
        with pytest.raises(InputError) as caught:
            check(tmp_path / "study.yaml")
        (fault,) = caught.value.faults
        assert fault.key == "space.methods.peft:XLORA.adapters"
        assert fault.given == f"{tmp_path}/expert1, without adapter_config.json"
        assert "train it first" in fault.hint
