"""Single weights by a measured score at any density, where the study has its map keep them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import autopeft
from autopeft.errors import InputError
from autopeft.execution import fitting
from autopeft.importance import measuring
from autopeft.training.loop import PackRun

MakePath = Callable[..., Path]

PLACE = {"layers": [0, 1], "sites": ["query", "up"]}
ENQUEUED: list[dict[str, Any]] = [
    {"sparse": [{**PLACE, "density": 0.6, "score": "fisher"}]},
    {"sparse": [{**PLACE, "density": 1.0, "score": "snip"}]},
    {"sparse": [{**PLACE, "density": 0.3, "score": "activation", "smallest": True}]},
    {"lora": [{**PLACE, "rank": 8}], "sparsity": {"rule": "sparse", "score": "taylor"}},
    {"lora": [{**PLACE, "rank": 8}], "sparsity": {"rule": "sparse", "smallest": True}},
    {"sparse": [{**PLACE, "density": 0.5, "granularity": "block", "block": 4, "score": "snip"}]},
]
SEARCH = {
    "initial": 1, "pack": 6, "rungs": [1.0], "searcher": "random", "baselines": [],
    "enqueue": ENQUEUED,
}  # fmt: skip


@pytest.fixture
def study(
    tmp_path: Path, bert_folder: Path, make_data: MakePath, make_study: MakePath
) -> Callable[..., Path]:
    """A study file, by its `search` block's additions."""

    def make(**search: Any) -> Path:
        data = make_data(tmp_path / "data")
        blocks = {"budget": {"trials": len(ENQUEUED)}, "training": {"epochs": 1}}
        return make_study(tmp_path, bert_folder, data, search=SEARCH | search, **blocks)

    return make


def searched(file: Path, **named: Any) -> Any:
    folder = file.parent
    url = f"sqlite:///{folder}/autopeft.db"
    return autopeft.search(file, storage=url, output_dir=folder / "out", **named)


def test_any_density_trains_and_trains_again_from_its_export(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    train = PackRun.train

    def noted(run: PackRun, *given: Any, **more: Any) -> bool:
        for state in run.states().values():
            begun.append({k: t for k, t in state.tensors.items() if "fixed/" in k})
        return train(run, *given, **more)

    monkeypatch.setattr(PackRun, "train", noted)
    file = study(importance_keep=1, importance_block=2)
    found, folder = searched(file), file.parent
    monkeypatch.chdir(folder)
    own = {number: begun[number] for number in range(len(ENQUEUED))}
    total = sum(index.numel() for index in own[1].values())
    assert sum(index.numel() for index in own[0].values()) / total == pytest.approx(0.6, abs=0.01)
    kept = []
    measure = measuring.measure
    monkeypatch.setattr(
        measuring,
        "measure",
        lambda trainer, settings, **more: (
            kept.append((settings.keep, settings.block)) or measure(trainer, settings, **more)
        ),
    )
    for number, fixed in own.items():
        trial = found.trial(number)
        assert trial.trainable_params >= sum(index.numel() for index in fixed.values())
        for rescore in (False, True):
            path = folder / f"{number}.yaml"
            found.export(path, trial=number)
            metrics = autopeft.train(path, folder / f"{number}-{rescore}", rescore=rescore)
            assert begun[-1].keys() == fixed.keys()
            for name, index in fixed.items():
                assert torch.equal(begun[-1][name], index), name
            assert metrics["trainable_params"] == trial.trainable_params
    assert kept == [(1.0, 2)] * len(ENQUEUED)  # once for each that was scored anew, none before


def test_a_written_configuration_has_its_density_kept(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a study whose map decided of it: the file's own density says how many."""
    file = study(importance_keep=1, importance_block=4)
    found = searched(file)
    monkeypatch.chdir(file.parent)
    for number in (0, 2, 3, 4):  # of methods and rules, the highest and the lowest
        written, bare = file.parent / f"{number}.yaml", file.parent / f"bare-{number}.yaml"
        plain = yaml.safe_load(found.export(written, trial=number))
        del plain["importance"]
        bare.write_text(yaml.safe_dump(plain))
        metrics = autopeft.train(bare, file.parent / f"bare-{number}")
        assert metrics["trainable_params"] == found.trial(number).trainable_params


def test_by_default_a_tenth_is_kept_and_the_error_says_how_to_keep_more(
    study: Callable[..., Path],
) -> None:
    with pytest.raises(InputError, match=r"which the map keeps.*search\.importance_keep"):
        searched(study())


@pytest.mark.parametrize("share", [0, 1.5, "much"])
def test_shares_that_are_none_are_refused(study: Callable[..., Path], share: object) -> None:
    with pytest.raises(InputError, match=r"search\.importance_keep.*> 0 and <= 1"):
        searched(study(importance_keep=share))


def test_more_than_memory_holds_is_refused_before_anything_is_measured(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 100_000)
    monkeypatch.setattr(measuring, "measure", None)
    with pytest.raises(InputError, match=r"got [\d,]+ single weights and [\d,]+ blocks, 0\.. GB"):
        searched(study(importance_keep=1))


@pytest.mark.parametrize(
    ("fact", "allowed"),
    [("kept_share: 2", "> 0 and <= 1"), ("block: '-4'", "a whole number >= 1")],
)
def test_facts_that_are_no_measure_are_refused(
    fact: str, allowed: str, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = study(importance_keep=1, importance_block=4)
    monkeypatch.chdir(file.parent)
    text = searched(file).export(trial=0)
    written = file.parent / "changed.yaml"
    written.write_text(re.sub(rf"{fact.partition(':')[0]}: .*", fact, text))
    with pytest.raises(InputError, match=rf"importance\.facts; got .*; allowed: .*{allowed}"):
        autopeft.train(written, file.parent / "never", rescore=True)


def test_a_file_that_leaves_out_defaults_trains_and_its_faults_are_told_first(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = study(importance_keep=1, importance_block=4)
    monkeypatch.chdir(file.parent)
    plain = yaml.safe_load(searched(file).export(trial=0))
    del plain["importance"]
    bare = file.parent / "bare.yaml"

    def trained(**configuration: Any) -> int:
        bare.write_text(yaml.safe_dump(plain | {"configuration": configuration}))
        return int(autopeft.train(bare, file.parent / "bare")["trainable_params"])

    lora = {"lora": [{**PLACE, "rank": 8, "alpha": 8}]}
    size = trained(**lora)
    assert trained(**lora, sparsity={"rule": "sparse"}) == size
    assert trained(**lora, sparsity={"rule": "sparse", "scope": "site", "score": "snip"}) == size
    few = trained(sparse=[{**PLACE, "density": 0.05, "score": "fisher"}])
    many = trained(sparse=[{**PLACE, "density": 0.5, "score": "fisher"}])
    assert many == pytest.approx(10 * few, rel=0.1)
    assert trained(sparse=[{**PLACE, "density": 0.5, "granularity": "block", "block": 4}])
    monkeypatch.setattr(measuring, "measure", None)
    for wrong, key in (({"block": 0}, "block"), ({"density": 2}, "density"), ({}, "density")):
        entry = {**PLACE, "granularity": "block", **({"density": 0.1} if wrong else {}), **wrong}
        with pytest.raises(InputError, match=rf"sparse\.0\.{key}"):
            trained(sparse=[entry])
