"""Scores that travel with a configuration: nothing is lost, nothing foreign is used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bound_problems import anatomy
from importance_maps import importance_map

from autopeft.backbone.importance import ImportanceMap
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, ExportError, InputError
from autopeft.export.carried_map import carried_map, tensors_path, used_scores
from autopeft.export.configuration_file import (
    ConfigurationFile,
    load_configuration_file,
    save_configuration,
    write_configuration,
)
from autopeft.space.document import parse_yaml
from autopeft.study.blocks import ModelBlock, TrainingBlock
from autopeft.study.data_block import DataBlock

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
SPT = {"rule": "spt", "budget": 0.5, "threshold": 10.0, "score": "sensitivity"}
LORA = Group.of("lora", [1, 3], ["query", "up"], rank=4, alpha=8.0, dropout=0.0)
ADAPTER = Group.of("serial_adapter", [2], ["ffn"], size=4)


def sparse(granularity: str, score: str = "gradient") -> Group:
    return Group.of("sparse", [0], ["value"], density=0.1, granularity=granularity, score=score)


def configuration(*groups: Group, **sparsity: object) -> Configuration:
    rule = sparsity or {"rule": "none"}
    return Configuration.of(groups, training=TRAINING, sparsity=rule)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured() -> ImportanceMap:
    return importance_map(anatomy(24), scores=("sensitivity", "gradient"), kept=40)


def record(found: Configuration, measured: ImportanceMap) -> ConfigurationFile:
    return ConfigurationFile(
        model=ModelBlock(name_or_path="builtin:minilm"),
        data=DataBlock(source="builtin:docstrings", text=["text"]),
        training=TrainingBlock(),
        seed=7,
        configuration=found,
        importance=carried_map(found, measured),
    )


def same(one: ImportanceMap, other: ImportanceMap) -> bool:
    return one.scores.keys() == other.scores.keys() and all(
        np.array_equal(getattr(own, part), getattr(other.of(score)[key], part))
        and getattr(own, part).dtype == getattr(other.of(score)[key], part).dtype
        for score, sites in one.scores.items()
        for key, own in sites.items()
        for part in ("inputs", "outputs", "blocks", "weights", "values")
    )


@pytest.mark.parametrize(
    "found",
    [
        configuration(LORA, ADAPTER, **SPT),
        configuration(sparse("weight")),
        configuration(sparse("input"), LORA, **SPT),
        configuration(LORA),
    ],
    ids=["spt", "sparse", "both", "nothing"],
)
def test_load_gives_back_what_was_exported(
    found: Configuration, measured: ImportanceMap, tmp_path: Path
) -> None:
    file, path = record(found, measured), tmp_path / "best.yaml"
    text = save_configuration(file, path)
    again = load_configuration_file(path)
    assert again == file
    assert (file.importance is None) == (not used_scores(found))
    assert tensors_path(path).exists() == (file.importance is not None)
    assert path.read_text() == text
    if file.importance and again.importance:
        assert same(again.importance.importance, file.importance.importance)
        assert again.importance.importance.block == measured.block
        assert save_configuration(again, tmp_path / "twin.yaml").replace("twin", "best") == text


def test_a_rule_comes_to_the_same_with_what_is_carried(measured: ImportanceMap) -> None:
    carried = carried_map(configuration(LORA, ADAPTER, **SPT), measured)
    assert carried is not None
    part = carried.importance
    keys = [(1, "query"), (1, "up"), (3, "query"), (3, "up"), (2, "down")]
    assert set(part.of("sensitivity")) == set(keys)
    assert list(part.scores) == ["sensitivity"]
    assert part.sensitive("sensitivity", keys, 77) == measured.sensitive("sensitivity", keys, 77)


def test_channels_carry_no_single_weights(measured: ImportanceMap) -> None:
    carried = carried_map(configuration(sparse("input")), measured)
    assert carried is not None
    own, whole = carried.importance.of("gradient")[0, "value"], measured.of("gradient")[0, "value"]
    assert len(own.values) == len(own.weights) == 0
    assert np.array_equal(own.inputs, whole.inputs)
    assert len(whole.values) == 40


@pytest.mark.parametrize("score", ["random", "magnitude"])
def test_what_needs_no_map_carries_none(measured: ImportanceMap, score: str) -> None:
    assert carried_map(configuration(sparse("weight", score)), measured) is None


def test_a_score_that_was_not_measured_is_refused(measured: ImportanceMap) -> None:
    with pytest.raises(BackboneError, match="taylor"):
        carried_map(configuration(sparse("weight", "taylor")), measured)


def test_people_can_read_the_sums(measured: ImportanceMap, tmp_path: Path) -> None:
    text = save_configuration(record(configuration(LORA, **SPT), measured), tmp_path / "best.yaml")
    block = parse_yaml(text, "text")["importance"]
    assert block["tensors"]["file"] == "best.importance.safetensors"
    assert block["scores"]["sensitivity"]["3.up"] == pytest.approx(
        measured.sites("sensitivity")[3, "up"], rel=1e-3
    )
    assert "best.importance.safetensors" in text.split("schema:")[0]


def test_missing_scores_are_told_with_what_to_do(measured: ImportanceMap, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    save_configuration(record(configuration(LORA, **SPT), measured), path)
    tensors_path(path).unlink()
    with pytest.raises(InputError, match=r"no file best\.importance\.safetensors.*--rescore"):
        load_configuration_file(path)
    assert load_configuration_file(path, rescore=True).importance is None


def test_other_scores_are_refused(measured: ImportanceMap, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    save_configuration(record(configuration(LORA, **SPT), measured), path)
    other = replace(measured, scores={**measured.scores, "sensitivity": measured.of("gradient")})
    save_configuration(record(configuration(LORA, **SPT), other), tmp_path / "other.yaml")
    tensors_path(tmp_path / "other.yaml").rename(tensors_path(path))
    with pytest.raises(InputError, match=r"importance\.tensors; got .*SHA-256.*--rescore"):
        load_configuration_file(path)


def test_scores_need_a_file_beside_which_they_lie(measured: ImportanceMap) -> None:
    with pytest.raises(ExportError, match="name a file"):
        write_configuration(record(configuration(LORA, **SPT), measured))


def test_a_later_file_without_scores_leaves_none_behind(
    measured: ImportanceMap, tmp_path: Path
) -> None:
    path = tmp_path / "best.yaml"
    save_configuration(record(configuration(LORA, **SPT), measured), path)
    save_configuration(record(configuration(LORA), measured), path)
    assert [each.name for each in tmp_path.iterdir()] == ["best.yaml"]
