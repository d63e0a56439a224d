"""R14: what is exported is what was trained, for every member of a front."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import autopeft
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import PackRun

MakePath = Callable[..., Path]
TEXTS = ["w1 w2 w3", "w11 w12 w30 w31 w5", "w25 w26"]


def test_every_member_of_a_front_comes_back_as_it_was_trained(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_data(tmp_path / "data")
    search = {"initial": 6, "searcher": "random"}
    study_file = make_study(tmp_path, bert_folder, data, search=search, budget={"trials": 8})
    ended: dict[int, LaneState] = {}
    evaluate = PackRun.evaluate

    def noted(run: PackRun, *given: Any) -> Any:
        if run.step == run._settings.total_steps:
            ended.update(run.states())
        return evaluate(run, *given)

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PackRun, "evaluate", noted)
        study = autopeft.search(study_file, storage=f"sqlite:///{tmp_path}/round.db")
    front = study.front()
    assert len(front) >= 2
    assert len({method for trial in front for method in trial.configuration.methods}) >= 2
    for trial in front:
        file, folder = tmp_path / f"{trial.number}.yaml", tmp_path / f"adapter-{trial.number}"
        study.export(file, trial=trial.number)
        assert autopeft.load_configuration(file).hash == trial.hash
        metrics = autopeft.train(file, folder)
        assert metrics["trainable_params"] == trial.trainable_params
        assert metrics["head_params"] == trial.head_params
        _same_tensors(load_file(folder / "adapter.safetensors"), ended[trial.number].kept())
        assert metrics["validation"]["accuracy"] == pytest.approx(
            trial.objectives["accuracy"], abs=1 / 48 + 1e-9
        )
        _same_outputs(folder, ended[trial.number])


def _same_tensors(written: dict[str, torch.Tensor], searched: Any) -> None:
    """Trained alone from its export, and in a pack of the search: the same to rounding."""
    assert written.keys() == searched.keys()
    for name, tensor in searched.items():
        assert written[name].shape == tensor.shape
        assert torch.allclose(written[name].float(), tensor.float(), atol=2e-4), name


def _same_outputs(folder: Path, searched: LaneState) -> None:
    """The loaded model against the same model with the search's own final weights."""
    model = autopeft.load(folder)
    found = model.logits(TEXTS)
    pack = model._pack
    views = pack.lane_views(pack.parameters_by_name(), 0)
    with torch.no_grad():
        for name, view in views.items():
            view.copy_(searched.kept()[name])
    assert np.abs(model.logits(TEXTS) - found).max() < 5e-3
    assert np.abs(found).max() > 0.0
