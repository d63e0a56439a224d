"""What scores decided travels with a configuration: all of it, no more, and nothing foreign."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bound_problems import anatomy
from importance_maps import importance_map

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.counting import resolved
from autopeft.errors import BackboneError, ExportError, InputError
from autopeft.export import decision
from autopeft.export.configuration_file import (
    ConfigurationFile,
    load_configuration_file,
    save_configuration,
    write_configuration,
)
from autopeft.export.deciding import decided, used_scores
from autopeft.export.decision import names_scores, tensors_path
from autopeft.methods import registry
from autopeft.space.document import parse_yaml
from autopeft.study.blocks import ModelBlock, TrainingBlock
from autopeft.study.data_block import DataBlock

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
SPT = {"rule": "spt", "budget": 0.6, "threshold": 10.0, "score": "sensitivity"}
RULE = {"rule": "sparse", "scope": "global", "score": "gradient", "smallest": False}
BY_WEIGHT = {**RULE, "granularity": "weight"}
LORA = Group.of("lora", [1, 3], ["query", "up"], rank=4, alpha=8.0, dropout=0.0)
ADAPTER = Group.of(
    "serial_adapter", [2], ["ffn"], size=4, activation="relu", scale=1.0, dropout=0.0
)
SALIENT = Group.of("salient_channels", [2], ["attention"], channels=5, score="gradient")


def sparse(granularity: str, score: str = "gradient", **more: Any) -> Group:
    own = {"granularity": granularity, "score": score, "smallest": False} | more
    return Group.of("sparse", [0], ["value"], density=0.1, **own)


def configuration(*groups: Group, **sparsity: object) -> Configuration:
    rule = sparsity or {"rule": "none"}
    return Configuration.of(groups, training=TRAINING, sparsity=rule)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured() -> Anatomy:
    own = anatomy(24)
    scores = ("sensitivity", "gradient", "magnitude")
    return replace(own, importance=importance_map(own, scores=scores, kept=400))


def record(found: Configuration, measured: Anatomy) -> ConfigurationFile:
    return ConfigurationFile(
        model=ModelBlock(name_or_path="builtin:minilm"),
        data=DataBlock(source="builtin:docstrings", text=["text"]),
        training=TrainingBlock(),
        seed=7,
        configuration=found,
        decision=decided(found, measured),
    )


DECIDED = {
    "spt": configuration(LORA, ADAPTER, **SPT),
    "rule of weights": configuration(LORA, **BY_WEIGHT),
    "rule of channels": configuration(LORA, **RULE, granularity="output"),
    "rule by magnitude": configuration(LORA, **{**BY_WEIGHT, "score": "magnitude"}),
    "weights": configuration(sparse("weight")),
    "heads": configuration(sparse("head"), SALIENT),
    "rule and weights": configuration(sparse("input", noise=4), LORA, **SPT),
    "weights under a rule of training": configuration(
        sparse("weight"), LORA, rule="rst", keep=0.25
    ),
}
FREE = {
    "lora": configuration(LORA),
    "by chance": configuration(sparse("weight", "random")),
    "by magnitude": configuration(sparse("weight", "magnitude")),
    "by place": configuration(sparse("block", "diagonal", block=4)),
    "rule by chance": configuration(LORA, **{**BY_WEIGHT, "score": "random"}),
    "rule of training": configuration(LORA, rule="rst", keep=0.25),
}


@pytest.mark.parametrize("most", [4096, 3], ids=["in the yaml", "beside it"])
@pytest.mark.parametrize("found", DECIDED.values(), ids=DECIDED.keys())
def test_load_gives_back_what_was_exported(
    found: Configuration,
    most: int,
    measured: Anatomy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decision, "MOST_LISTED", most)
    file, path = record(found, measured), tmp_path / "best.yaml"
    text = save_configuration(file, path)
    again = load_configuration_file(path)
    assert again == file
    assert again.configuration.hash == found.hash
    assert again.decision is not None
    assert file.decision is not None
    assert again.decision.chosen.keys() == file.decision.chosen.keys()
    for place, own in file.decision.chosen.items():
        assert again.decision.chosen[place].dtype == np.int64
        assert np.array_equal(again.decision.chosen[place], own)
    assert tensors_path(path).exists() == (most == 3 and bool(file.decision.chosen))
    assert path.read_text() == text
    assert save_configuration(again, tmp_path / "twin.yaml").replace("twin", "best") == text


@pytest.mark.parametrize("found", DECIDED.values(), ids=DECIDED.keys())
def test_what_travels_is_what_the_map_decides(found: Configuration, measured: Anatomy) -> None:
    own = decided(found, measured)
    assert own is not None
    assert own.trained == resolved(found, measured)
    assert own.trained == resolved(own.trained, replace(measured, importance=None)), "for good"
    expected = {}
    for group in own.trained.groups:
        for place in registry[group.method].places(group, measured):
            if group.method not in ("sparse", "salient_channels"):
                continue
            if group["score"] == "magnitude":
                continue  # decided by the frozen weights, which are there
            expected[f"{group.method}.{place.layer}.{place.site}"] = chosen_by_hand(
                group, place.layer, place.site, measured
            )
    assert own.chosen.keys() == expected.keys()
    for place, index in expected.items():
        assert own.chosen[place].tolist() == index


def chosen_by_hand(group: Group, layer: int, site: str, measured: Anatomy) -> list[int]:
    """The highest of a site's scores, one after the other."""
    of = measured.measured().of(str(group["score"]))
    if group.method == "salient_channels":
        sums = of[layer, {"attention": "output", "ffn": "down"}[site]].outputs
        return sorted(sorted(range(len(sums)), key=lambda i: (-sums[i], i))[: group["channels"]])
    own, density = of[layer, site], float(group["density"])
    if group["granularity"] == "weight":
        whole = len(own.inputs) * len(own.outputs)
        return sorted(own.weights[: max(1, round(density * whole))].tolist())
    if group["granularity"] == "head":
        width = measured.head_dim
        sums = own.output_heads(width)
    else:
        width = 1
        sums = own.inputs if group["granularity"] == "input" else own.outputs
    number = max(1, round(density * len(sums)))
    units = sorted(range(len(sums)), key=lambda i: (-sums[i], i))[:number]
    return [unit * width + line for unit in sorted(units) for line in range(width)]


@pytest.mark.parametrize("found", FREE.values(), ids=FREE.keys())
def test_what_no_map_decides_carries_nothing(
    found: Configuration, measured: Anatomy, tmp_path: Path
) -> None:
    assert decided(found, replace(measured, importance=None)) is None
    assert not used_scores(found)
    path = tmp_path / "best.yaml"
    text = save_configuration(record(found, measured), path)
    assert "importance" not in parse_yaml(text, "text")
    assert [each.name for each in tmp_path.iterdir()] == ["best.yaml"]
    assert load_configuration_file(path).trained == found


def test_whatever_a_map_decides_names_a_score() -> None:
    assert all(map(names_scores, DECIDED.values()))
    assert not names_scores(FREE["lora"])
    assert not names_scores(FREE["rule of training"])


def test_a_score_that_was_not_measured_is_refused(measured: Anatomy) -> None:
    with pytest.raises(BackboneError, match="taylor"):
        decided(configuration(sparse("weight", "taylor")), measured)


def test_people_can_read_it(measured: Anatomy, tmp_path: Path) -> None:
    text = save_configuration(record(DECIDED["spt"], measured), tmp_path / "best.yaml")
    block = parse_yaml(text, "text")["importance"]
    assert block["scores"]["sensitivity"]["3.up"] == pytest.approx(
        measured.measured().sites("sensitivity")[3, "up"], rel=1e-3
    )
    assert not any(key.startswith("0.") for key in block["scores"]["sensitivity"])
    assert set(block["resolved"]) <= {"lora", "serial_adapter", "sparse", "sparsity"}
    assert "--rescore" in text.split("schema:")[0]


def test_missing_tensors_are_told_with_what_to_do(
    measured: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "MOST_LISTED", 3)
    path = tmp_path / "best.yaml"
    text = save_configuration(record(DECIDED["weights"], measured), path)
    assert "best.importance.safetensors" in text.split("schema:")[0]
    tensors_path(path).write_bytes(b"other")
    with pytest.raises(InputError, match=r"best\.importance\.safetensors that can.*--rescore"):
        load_configuration_file(path)
    tensors_path(path).unlink()
    with pytest.raises(InputError, match=r"no file best\.importance\.safetensors.*--rescore"):
        load_configuration_file(path)
    assert load_configuration_file(path, rescore=True).decision is None


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("what was proposed", "budget: 0.6", "budget: 0.5"),
        ("what it comes to", "rank: 4", "rank: 8"),
        ("what was chosen", "chosen:", "chosen:\n    sparse.0.value: [3]"),
    ],
)
def test_what_is_changed_by_hand_is_refused(
    what: str, old: str, new: str, measured: Anatomy, tmp_path: Path
) -> None:
    path = tmp_path / "best.yaml"
    text = save_configuration(record(DECIDED["spt"], measured), path)
    head, tail = text.split("importance:\n", 1)
    changed = head.replace(old, new) + "importance:\n" + tail
    if what != "what was proposed":
        changed = head + "importance:\n" + tail.replace(old, new)
    assert changed != text, what
    path.write_text(changed)
    with pytest.raises(InputError, match=r"importance\.sha256; got .*by hand.*--rescore"):
        load_configuration_file(path)
    assert load_configuration_file(path, rescore=True).decision is None


def test_training_values_may_be_changed_by_hand(measured: Anatomy, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    text = save_configuration(record(DECIDED["spt"], measured), path)
    path.write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.002"))
    again = load_configuration_file(path)
    assert again.trained.training_value("learning_rate") == 0.002
    assert again.trained.groups == resolved(DECIDED["spt"], measured).groups


def test_long_lists_need_a_file_beside_which_they_lie(
    measured: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = record(DECIDED["weights"], measured)
    assert "sparse.0.value: [" in write_configuration(file)
    monkeypatch.setattr(decision, "MOST_LISTED", 3)
    with pytest.raises(ExportError, match="name a file"):
        write_configuration(file)


def test_a_later_file_without_tensors_leaves_none_behind(
    measured: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "MOST_LISTED", 3)
    path = tmp_path / "best.yaml"
    save_configuration(record(DECIDED["weights"], measured), path)
    assert tensors_path(path).exists()
    save_configuration(record(FREE["lora"], measured), path)
    assert [each.name for each in tmp_path.iterdir()] == ["best.yaml"]
