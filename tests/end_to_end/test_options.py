"""Training options as dimensions, activation density as an objective: from the file and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import autopeft
from autopeft.cli.wording import configuration_text
from autopeft.study.records import TrialState

MakePath = Callable[..., Path]
DENSITY = "activation_density"
BLOCKS: dict[str, Any] = {
    "training": {"epochs": 2, "ffn_dropping": 0.1},
    "objectives": [{"metric": "accuracy"}, {"metric": DENSITY}],
    "constraints": [{"metric": "trainable_params", "cap": 4000}],
    "search": {"initial": 3, "pack": 4, "rungs": [1.0], "baselines": ["lora-r1"]},
    "budget": {"trials": 4},
}
SPACE = {
    "methods": {
        "lora": {
            "rank": {"choice": [1, 2]},
            "sites": ["query", "up"],
            "layers": {
                "mode": "groups",
                "pattern": [1, 1],
                "groups": {"choice": [[1], [2], [1, 2]]},
            },
        }
    },
    "training": {
        "ffn_masking": {"choice": [0, 0.2]},
        "density_weight": {"choice": [0, 1.0, 10.0]},
        "density_epsilon": 0.01,
    },
}


@pytest.mark.slow
def test_options_and_density_from_the_study_file_to_the_exported_training(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = make_study(tmp_path, bert_folder, make_data(tmp_path / "data"), **BLOCKS)
    text = file.read_text()
    begin = text.index("space:")
    end = text.index("search:")
    file.write_text(text[:begin] + yaml.safe_dump({"space": SPACE}) + text[end:])
    plan = autopeft.plan(file)
    assert plan["space"]["distinct"] == 2 * 3 * 2 * 3
    study = autopeft.search(file, storage=f"sqlite:///{tmp_path}/options.db")
    assert [frame.name for frame in study.frames] == ["accuracy", DENSITY]
    trials = study.trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETED}
    for trial in trials:
        training = dict(trial.configuration.training)
        assert training["ffn_dropping"] == 0.1, "the study's own, also of baselines"
        assert ("density_epsilon" in training) == ("density_weight" in training)
        assert 0.5 < trial.objectives[DENSITY] == trial.profile["reached"][DENSITY] <= 1.0
    assert len({trial.objectives[DENSITY] for trial in trials}) > 1
    chosen = max(trials, key=lambda trial: len(trial.configuration.training))
    assert "density_weight" in configuration_text(chosen.configuration)
    out = tmp_path / "chosen.yaml"
    study.export(out, trial=chosen.number)
    assert autopeft.load_configuration(out).hash == chosen.hash
    metrics = autopeft.train(out, tmp_path / "adapter")
    assert metrics["validation"][DENSITY] == pytest.approx(chosen.objectives[DENSITY], abs=2e-3)
    assert metrics["validation"]["accuracy"] == pytest.approx(
        chosen.objectives["accuracy"], abs=1 / 48 + 1e-9
    )
