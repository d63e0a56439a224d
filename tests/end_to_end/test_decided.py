"""What scores decided in a search is trained again from its export, weight by weight."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import autopeft
from autopeft.errors import InputError
from autopeft.export.configuration_file import load_configuration_file
from autopeft.export.decision import tensors_path
from autopeft.importance import measuring
from autopeft.training.loop import PackRun

MakePath = Callable[..., Path]
Fixed = dict[str, torch.Tensor]

LORA = {"layers": [0, 1], "sites": ["query", "value", "up"], "rank": 1, "alpha": 2}
ADAPTER = {"layers": [1], "sites": ["ffn"], "size": 2}
ENQUEUED: dict[str, dict[str, Any]] = {
    "spt": {
        "lora": [LORA],
        "parallel_adapter": [ADAPTER],
        "sparsity": {"rule": "spt", "budget": 0.5, "threshold": 8.0},
    },
    "rule of weights": {"lora": [LORA], "sparsity": {"rule": "sparse"}},
    "rule by magnitude": {"lora": [LORA], "sparsity": {"rule": "sparse", "score": "magnitude"}},
    "rule of rows": {
        "lora": [LORA],
        "sparsity": {"rule": "sparse", "granularity": "input", "score": "fisher"},
    },
    "weights and heads": {
        "sparse": [
            {"layers": [0], "sites": ["up"], "density": 0.05},
            {"layers": [1], "sites": ["query"], "density": 0.5, "granularity": "head"},
        ],
        "salient_channels": [{"layers": [1], "sites": ["ffn"], "channels": 3}],
    },
    "layers alone": {"lora": [{**LORA, "layers": [1]}]},
}
NAMES = tuple(ENQUEUED)


@pytest.fixture(scope="module")
def begun() -> Iterator[list[dict[int, Fixed]]]:
    """Fixed tensors of every run that begins to train, by lane."""
    seen: list[dict[int, Fixed]] = []
    train = PackRun.train

    def noted(run: PackRun, *given: Any, **named: Any) -> bool:
        states = run.states()
        seen.append(
            {n: {k: t for k, t in s.tensors.items() if "fixed/" in k} for n, s in states.items()}
        )
        return train(run, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackRun, "train", noted)
        yield seen


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    begun: list[dict[int, Fixed]],
) -> tuple[Path, Any, dict[int, Fixed]]:
    """A folder, its study, and what was fixed in each of its trials."""
    folder = tmp_path_factory.mktemp("decided")
    search = {
        "initial": 1, "pack": 6, "rungs": [1.0], "searcher": "random", "baselines": [],
        "enqueue": list(ENQUEUED.values()),
    }  # fmt: skip
    data, blocks = make_data(folder / "data"), {"budget": {"trials": len(ENQUEUED)}}
    make_study(folder, bert_folder, data, search=search, training={"epochs": 1}, **blocks)
    url = f"sqlite:///{folder}/autopeft.db"
    study = autopeft.search(folder / "study.yaml", storage=url, output_dir=folder / "out")
    return folder, study, {number: own for run in begun for number, own in run.items()}


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_an_export_trains_the_weights_of_the_search(
    number: int,
    searched: tuple[Path, Any, dict[int, Fixed]],
    begun: list[dict[int, Fixed]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, study, fixed = searched
    path = folder / f"{number}.yaml"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(measuring, "measure", None)  # nothing is measured again
    study.export(path, trial=number)
    trial = study.trial(number)
    assert autopeft.load_configuration(path).hash == trial.hash
    metrics = autopeft.train(path, folder / f"adapter-{number}")
    (own,) = begun[-1].values()
    assert own.keys() == fixed[number].keys()
    assert bool(own) == (NAMES[number] != "layers alone")
    for name, index in fixed[number].items():
        assert torch.equal(own[name], index), name
    assert metrics["trainable_params"] == trial.trainable_params
    assert metrics["validation"]["accuracy"] == pytest.approx(trial.objectives["accuracy"])
    again = load_configuration_file(folder / f"adapter-{number}" / "autopeft.yaml")
    assert again.decision == load_configuration_file(path).decision
    assert autopeft.load(folder / f"adapter-{number}").predict(["w1 w2 w3"])


def test_layers_that_are_named_carry_no_scores(
    searched: tuple[Path, Any, dict[int, Fixed]],
) -> None:
    folder, study, _ = searched
    text = study.export(folder / "plain.yaml", trial=NAMES.index("layers alone"))
    assert "importance" not in text
    assert not tensors_path(folder / "plain.yaml").exists()


def test_another_backbone_is_refused(
    searched: tuple[Path, Any, dict[int, Fixed]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, study, _ = searched
    monkeypatch.chdir(folder)
    text = study.export(trial=NAMES.index("spt"))
    fingerprint = study.record.fingerprints["backbone"]
    (folder / "other.yaml").write_text(text.replace(fingerprint, "f" * len(fingerprint)))
    with pytest.raises(InputError, match=r"model\.fingerprint; got .*--rescore"):
        autopeft.train(folder / "other.yaml", folder / "other")
