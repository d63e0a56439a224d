"""A first study file that loads back, and a check that refuses what a search would refuse."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from transformers import BertConfig

from autopeft.api import checks
from autopeft.api.checking import fetch, init, study_name_for, validate
from autopeft.errors import Fault, InputError
from autopeft.study.definition import default_definition, load_definition, parse_definition

CLASSES = ("cat", "dog", "eel")
Study = Callable[..., Path]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, of which only the configuration lies there."""
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=44,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    config.save_pretrained(folder)
    return folder


def _write_data(folder: Path, *splits: str) -> Path:
    folder.mkdir()
    for split in splits:
        rows = [f"what is a {CLASSES[i % 3]} number {i},{CLASSES[i % 3]}" for i in range(60)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_data(tmp_path_factory.mktemp("data") / "animals", "train", "validation")


@pytest.fixture
def study(tmp_path: Path, model: Path, data: Path) -> Study:
    """Writes a study file; blocks are merged into a sound one."""

    def write(**blocks: Any) -> Path:
        plain: dict[str, Any] = {
            "model": {"name_or_path": str(model)},
            "data": {"source": str(data), "text": "text", "label": "label"},
        }
        for name, block in blocks.items():
            own = plain.get(name, {})
            plain[name] = own | block if isinstance(block, dict) else block
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump(plain))
        return path

    return write


def _faults(path: Path, **given: Any) -> tuple[Fault, ...]:
    with pytest.raises(InputError) as caught:
        validate(path, **given)
    return caught.value.faults


def _keys(path: Path, **given: Any) -> list[tuple[str, str]]:
    """Where and key of every fault, the study file called as such."""
    return [
        ("file" if fault.where == str(path) else fault.where, fault.key)
        for fault in _faults(path, **given)
    ]


# -- init -----------------------------------------------------------------------------------------


def test_init_says_that_answers_are_learnt(model: Path, place: Path) -> None:
    rows = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}."} for i in range(60)]
    (place / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = init(str(model), "sums.jsonl")
    assert set(made.guesses) == {
        "data.splits",
        "data.format",
        "data.prompt",
        "data.completion",
        "data.max_length",
        "model.task",
        "objectives",
    }
    definition = made.definition
    assert definition.model.task == "causal-lm"
    assert definition.objectives[0].metric == "loss"
    data = definition.data
    assert (data.format, data.prompt, data.completion, data.label) == (
        "prompt-completion",
        "{question}\n",
        "answer",
        None,
    )
    path = place / "s.yaml"
    path.write_text(made.text)
    assert load_definition(path) == definition
    assert checks.data_faults(definition, place / "out") == []
    wrong = load_definition(path, ["data.completion='{answer} {unit}'", "data.choices=options"])
    assert [fault.key for fault in checks.data_faults(wrong, place / "out")] == [
        "data.completion",
        "data.choices",
    ]


@pytest.mark.parametrize(
    ("files", "validation", "test"),
    [
        (("train", "test"), 0.1, "test"),
        (("train", "validation"), "validation", None),
        (("train", "dev", "test"), "validation", "test"),
    ],
)
def test_init_gives_a_file_that_loads_back(
    files: tuple[str, ...], validation: object, test: object, model: Path, place: Path
) -> None:
    _write_data(place / "animals", *files)
    made = init(str(model), "animals")
    assert set(made.guesses) == {
        "data.splits",
        "data.text",
        "data.label",
        "model.task",
        "objectives",
    }
    splits = made.definition.data.splits
    assert (splits.train, splits.validation, splits.test) == ("train", validation, test)
    assert made.definition.data.source == str(place / "animals")
    for why in made.guesses.values():
        assert f"guessed: {why}" in made.text
    (place / "elsewhere").mkdir()
    path = place / "elsewhere" / "t.yaml"
    path.write_text(made.text)
    assert load_definition(path) == made.definition
    assert validate(path) == made.definition


def test_init_leaves_nothing_behind(
    model: Path, data: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_OUTPUT", str(place / "runs"))
    init(str(model), str(data))
    assert list(place.iterdir()) == []
    init(str(model), str(data), output_dir=Path("kept"))
    assert [entry.name for entry in place.iterdir()] == ["kept"]


def test_init_tells_faults_of_model_and_data_together(place: Path) -> None:
    with pytest.raises(InputError) as caught:
        init("./no-model", "none.csv")
    assert [(fault.where, fault.key) for fault in caught.value.faults] == [
        ("init", "model.name_or_path"),
        ("none.csv", "data.source"),
    ]


def test_init_without_arguments_is_the_embedded_default(place: Path) -> None:
    made = init()
    assert (made.definition, made.guesses) == (default_definition(), {})
    Path("t.yaml").write_text(made.text)
    assert load_definition(Path("t.yaml")) == default_definition()


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("builtin:minilm", "/data/trec6/", "trec6-minilm"),
        ("org/Model_v2", "my data.csv", "my-data-model-v2"),
        ("m", ".", "m"),
    ],
)
def test_the_study_is_named_after_data_and_model(model: str, data: str, name: str) -> None:
    assert study_name_for(model, data) == name


# -- validate -------------------------------------------------------------------------------------


def test_a_sound_study_is_ok_and_leaves_nothing_behind(study: Study, place: Path) -> None:
    path = study(space="lora")
    before = sorted(path.parent.rglob("*"))
    assert validate(path) == load_definition(path)
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("text", [None, "a: [", "", "- 1\n"])
def test_a_fault_of_the_whole_file_is_told_once(text: str | None, place: Path) -> None:
    path = place / "s.yaml"
    if text is not None:
        path.write_text(text)
    assert len(_faults(path)) == 1


def test_model_data_and_space_are_told_together(study: Study) -> None:
    path = study(
        model={"name_or_path": "./no-model"},
        data={"source": "./none.csv"},
        space={"methods": {"lroa": {}}},
        search={"enqueue": [{"lora": [{"layers": [0], "rank": -1}]}]},
    )
    assert _keys(path) == [
        ("file", "model.name_or_path"),
        (str(path.parent / "none.csv"), "data.source"),
        ("file", "space.methods.lroa"),
        ("file", "search.enqueue.0.lora.0.rank"),
    ]


def test_columns_that_the_data_lack_are_told(study: Study) -> None:
    path = study(data={"text": "txt", "label": "lable"}, space="lora")
    assert {fault.key for fault in _faults(path)} == {"data.text", "data.label"}


def test_the_backbone_is_held_against_space_queue_and_baselines(study: Study) -> None:
    path = study(
        space={"methods": {"lora": {"rank": {"choice": [1, 2]}, "sites": ["gate"]}}},
        search={
            "baselines": ["lroa-r8"],
            "enqueue": [{"lora": [{"layers": [5], "rank": 2, "sites": ["query"]}]}],
        },
    )
    assert _keys(path) == [
        ("file", "space.methods.lora.sites"),
        ("file", "search.baselines.0"),
        ("file", "search.enqueue.0.lora.0.layers"),
    ]


def test_a_cap_that_nothing_meets_is_told_beside_the_data(study: Study) -> None:
    capped = [{"metric": "accuracy"}, {"metric": "trainable_params", "cap": 1}]
    path = study(objectives=capped, space="lora", data={"source": "./none.csv"})
    data, cap = _faults(path)
    assert data.key == "data.source"
    assert (cap.where, cap.given) == (str(path), "1")


def test_a_space_is_told_where_it_stands(study: Study) -> None:
    path = study(space="qiuck")
    [fault] = _faults(path)
    assert (fault.where, fault.key, fault.hint) == (str(path), "space", "write quick")
    own = path.parent / "own.yaml"
    own.write_text("schema: autopeft/space/v1\nmethods: {lroa: {}}\n")
    assert _keys(study(space="./own.yaml")) == [(str(own), "methods.lroa")]


def test_the_space_is_told_beside_faulty_keys_and_once(study: Study) -> None:
    path = study(budgt=3, space={"methods": {"lroa": {}}})
    assert _keys(path) == [("file", "budgt"), ("file", "space.methods.lroa")]
    assert _keys(study(space=1)) == [("file", "space")]


def test_the_file_alone(study: Study) -> None:
    missing = {"model": {"name_or_path": "./no-model"}, "data": {"source": "./none.csv"}}
    capped = [{"metric": "accuracy"}, {"metric": "trainable_params", "cap": 1}]
    path = study(**missing, objectives=capped, space="lora")
    assert validate(path, check_model=False) == load_definition(path)
    path = study(**missing, space={"methods": {"lroa": {}}})
    assert _keys(path, check_model=False) == [("file", "space.methods.lroa")]


# -- hub data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "offline", "read"),
    [
        ("owner/name", False, False),
        ("name", False, False),
        ("owner/name", True, True),
        ("one/two/three", False, True),
        ("missing.csv", False, True),
        ("/no/where", False, True),
        ("builtin:docstrings", False, True),
    ],
)
def test_hub_data_are_read_offline_alone(
    source: str, offline: bool, read: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(request: Any, *, output_dir: Path) -> None:
        asked.append(request.source)

    monkeypatch.setattr(checks, "load_text_data", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    plain = {"model": {"name_or_path": "m"}, "data": {"source": source}}
    definition = parse_definition(plain, where="test", base=None)
    assert checks.data_faults(definition, place) == []
    assert bool(asked) == read


def test_hub_data_that_are_not_cached_are_told_offline(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "owner/not-cached"}}
    definition = parse_definition(plain, where="test", base=None)
    [fault] = checks.data_faults(definition, place)
    assert (fault.where, fault.key) == ("owner/not-cached", "data.source")


def test_fetch_says_what_is_there_now(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    rows = "".join(f"some text {i},{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    study.write_text(
        "schema: autopeft/v1\n"
        "model: {name_or_path: 'builtin:minilm'}\n"
        "data: {source: train.csv, splits: {validation: 0.5}}\n"
    )
    lines = fetch(study, output_dir=tmp_path / "out")
    assert lines[0].startswith("model builtin:minilm: 22,")
    assert lines[1].endswith("10 train, 10 validation")


# -- where packs run ------------------------------------------------------------------------------


def test_an_executor_that_is_not_installed_names_its_extra(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a)
    )
    path = study(execution={"executor": "ray"})
    [fault] = _faults(path)
    assert (fault.where, fault.key, fault.given) == (str(path), "execution.executor", "ray")
    assert fault.hint == "pip install 'autopeft[ray]'"


def test_a_cluster_takes_no_list_of_this_machines_devices(study: Study) -> None:
    pytest.importorskip("ray", reason="needs the extra autopeft[ray]")
    path = study(execution={"executor": "ray", "devices": "cpu,cpu"})
    assert _keys(path) == [("file", "execution.devices")]
