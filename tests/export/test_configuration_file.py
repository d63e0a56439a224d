from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.configuration import TRAINING_KEYS, Configuration, Group
from autopeft.errors import InputError
from autopeft.export.configuration_file import (
    ConfigurationFile,
    load_configuration_file,
    write_configuration,
)
from autopeft.space.document import parse_yaml
from autopeft.study.blocks import ModelBlock, TrainingBlock
from autopeft.study.data_block import DataBlock

LORA = Group.of("lora", [8, 9], ["query", "value"], rank=8, alpha=16, dropout=0.05)
TRAINING = {"learning_rate": 3e-5, "weight_decay": 0.0, "warmup_ratio": 0.06}


def record(**changes: Any) -> ConfigurationFile:
    fields: dict[str, Any] = {
        "model": ModelBlock(name_or_path="builtin:minilm", revision="12e5"),
        "data": DataBlock(source="builtin:docstrings", text=["a", "b"], max_length=48),
        "training": TrainingBlock(epochs=3),
        "seed": 7,
        "configuration": Configuration.of([LORA], training=TRAINING),
        "model_fingerprint": "0123",
        "results": {"accuracy": {"value": 0.87, "rung": 1.0, "seed": 0}, "head_params": 592130},
        "origin": {"study": "s", "trial": 17, "pick": "knee", "versions": {"torch": "2.13"}},
    }
    return ConfigurationFile(**fields | changes)


def loaded(text: str, folder: Path) -> ConfigurationFile:
    path = folder / "best.yaml"
    path.write_text(text)
    return load_configuration_file(path)


def faults(text: str, folder: Path) -> dict[str, str]:
    with pytest.raises(InputError) as error:
        loaded(text, folder)
    assert {fault.where for fault in error.value.faults} == {str(folder / "best.yaml")}
    return {fault.key: fault.hint for fault in error.value.faults}


floats = st.floats(1e-12, 1e12)
number = floats | st.integers(0, 10**6)
settings_of_a_group = st.dictionaries(
    st.sampled_from(["rank", "alpha", "dropout", "activation", "reparametrise"]),
    number | st.booleans() | st.sampled_from(["relu", "1e5", "no", "08"]),
)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    layers = st.sets(st.integers(0, 47), min_size=1)
    groups = [
        Group.of(method, draw(layers), sites, **draw(settings_of_a_group))
        for method, sites in (
            ("lora", ["query"]),
            ("lora", ["value", "up"]),
            ("prefix", []),
            ("serial_adapter", ["ffn"]),
        )
        if draw(st.booleans())
    ]
    training = {
        "learning_rate": draw(floats),
        "weight_decay": draw(number),
        "warmup_ratio": draw(st.floats(0.0, 0.99) | st.just(0)),
    }
    return Configuration.of(groups, training=training)


@given(
    configuration=configurations(),
    seed=st.integers(0, 2**32 - 1),
    fingerprint=st.none() | st.sampled_from(["1e5", "ab"]),
)
@settings(max_examples=80, deadline=None)
def test_load_gives_back_what_was_exported(
    configuration: Configuration,
    seed: int,
    fingerprint: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = record(configuration=configuration, seed=seed, data_fingerprint=fingerprint)
    again = loaded(write_configuration(file), tmp_path_factory.getbasetemp())
    assert again == file
    assert again.configuration.hash == configuration.hash
    assert write_configuration(again) == write_configuration(file)


def test_the_training_values_stand_in_one_place() -> None:
    plain = parse_yaml(write_configuration(record()), "text")
    assert plain["schema"] == "autopeft/config/v1"
    assert plain["configuration"] == {
        "lora": [
            {
                "layers": [8, 9],
                "sites": ["query", "value"],
                "alpha": 16,
                "dropout": 0.05,
                "rank": 8,
            }
        ],
        "sparsity": {"rule": "none"},
    }
    assert {key: plain["training"][key] for key in TRAINING_KEYS} == TRAINING
    assert plain["training"]["seed"] == 7
    assert plain["model"]["fingerprint"] == "0123"


def test_the_configurations_training_values_win() -> None:
    assert record().training.learning_rate == 3e-5
    assert record().training.epochs == 3


def test_an_edited_learning_rate_is_the_configurations(tmp_path: Path) -> None:
    text = write_configuration(record()).replace("3.0e-05", "0.5")
    file = loaded(text, tmp_path)
    assert file.training.learning_rate == 0.5
    assert file.configuration.training_value("learning_rate") == 0.5


def test_it_says_how_to_train_it_and_is_readable() -> None:
    lines = write_configuration(record()).splitlines()
    assert "#   autopeft train THIS_FILE -o adapter/" in lines
    group = "{layers: [8, 9], sites: [query, value], alpha: 16, dropout: 0.05, rank: 8}"
    assert f"  lora: [{group}]" in lines


def test_answers_come_back(tmp_path: Path) -> None:
    model = ModelBlock(name_or_path="m", task="causal-lm")
    data = DataBlock(
        source="org/d", format="prompt-completion", prompt="{a}\n{b}", choices=["yes", "no"]
    )
    text = write_configuration(record(model=model, data=data))
    assert loaded(text, tmp_path).data == data
    assert list(faults(text.replace("causal-lm", "regression"), tmp_path)) == ["data.format"]


def test_a_relative_source_starts_at_the_file(tmp_path: Path) -> None:
    text = write_configuration(record()).replace("builtin:docstrings", "rows.csv")
    assert loaded(text, tmp_path).data.source == str(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("autopeft/config/v1", "autopeft/v1", "schema"),
        ("autopeft/config/v1", "autopeft/config/v2", "schema"),
        ("sparsity:", "training: {learning_rate: 1}\n  sparsity:", "configuration.training"),
        ("layers: [8, 9]", "layers: all", "configuration.lora.0.layers"),
        ("results:", "result: 1\nresults:", "result"),
        ("seed: 7", "seed: true", "training.seed"),
        ("  learning_rate:", "  lr:", "training.lr"),
        ("  weight_decay: 0\n", "", "training.weight_decay"),
        ("max_length: 48", "max_length: '48'", "data.max_length"),
        ("fingerprint: '0123'", "fingerprint: 123", "model.fingerprint"),
        ("rank: 8}", "rank: 8}, {layers: [8], sites: [query], rank: 1}", "configuration.lora"),
    ],
)
def test_faults(old: str, new: str, key: str, tmp_path: Path) -> None:
    text = write_configuration(record())
    assert old in text
    assert list(faults(text.replace(old, new), tmp_path)) == [key]


def test_a_study_file_is_named_as_such(tmp_path: Path) -> None:
    hints = faults("schema: autopeft/v1\nstudy: {name: s}\n", tmp_path)
    assert "autopeft search" in hints["schema"]
    assert {"study", "model.name_or_path", "data.source", "configuration"} <= set(hints)
