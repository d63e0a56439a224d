import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from autopeft.errors import DataError
from autopeft.training.data import sources
from autopeft.training.data.sources import open_source

ROWS = [{"text": "a cat", "label": 0}, {"text": "a dog", "label": 1}]


def texts(path: Path, output_dir: Path, split: str = "train") -> list[str]:
    return open_source(str(path), output_dir=output_dir).read(split)["text"][:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", "text,label\na cat,0\na dog,1\n"),
        ("d.tsv", "text\tlabel\na cat\t0\na dog\t1\n"),
        ("d.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("d.json", json.dumps(ROWS)),
    ],
)
def test_a_file_is_one_train_split(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert open_source(str(path), output_dir=tmp_path).names == ("train",)
    assert texts(path, tmp_path) == ["a cat", "a dog"]


def test_parquet_keeps_class_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])}
    )
    table = datasets.Dataset.from_list(ROWS, features=features)
    datasets.disable_progress_bars()
    table.to_parquet(str(tmp_path / "d.parquet"))
    read = open_source(str(tmp_path / "d.parquet"), output_dir=tmp_path).read("train")
    assert read.features["label"].names == ["z", "a"]


def test_words_that_pandas_takes_for_missing_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\nNA,1\nNone,2\nnull,1\n,2\n")
    assert texts(path, tmp_path) == ["NA", "None", "null", None]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\nold,1\n")
    assert texts(path, tmp_path) == ["old"]
    path.write_text("text,label\nnewer,1\n")
    assert texts(path, tmp_path) == ["newer"]


def test_brackets_in_a_path_are_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "run[1]*" / "d.csv"
    path.parent.mkdir()
    path.write_text("text,label\na cat,1\n")
    assert texts(path, tmp_path) == ["a cat"]


def test_folder_splits_aliases_and_shards(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "dev", "test"):
        (folder / f"{name}.csv").write_text(f"text,label\n{name},1\n")
    (folder / "README.md").write_text("not data")
    assert open_source(str(folder), output_dir=tmp_path).names == ("train", "validation", "test")
    assert texts(folder, tmp_path) == ["train-00000-of-00002", "train-00001-of-00002"]
    assert texts(folder, tmp_path, "validation") == ["dev"]


def test_dev_keeps_its_name_beside_validation(tmp_path: Path) -> None:
    for name in ("train", "dev", "validation"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},1\n")
    source = open_source(str(tmp_path), output_dir=tmp_path)
    assert set(source.names) == {"train", "dev", "validation"}
    assert source.read("validation")["text"][:] == ["validation"]


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n')
    with pytest.raises(DataError, match=r"train\.csv, train\.jsonl; allowed: one file 'train'"):
        open_source(str(tmp_path), output_dir=tmp_path)


def test_saved_folders(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=table, test=table).save_to_disk(str(tmp_path / "several"))
    table.save_to_disk(str(tmp_path / "single"))
    for broken in (tmp_path / "several" / "test").glob("*.arrow"):
        broken.write_bytes(b"broken")
    assert set(open_source(str(tmp_path / "several"), output_dir=tmp_path).names) == {
        "train",
        "test",
    }
    assert texts(tmp_path / "several", tmp_path) == ["a cat", "a dog"]
    assert texts(tmp_path / "single", tmp_path) == ["a cat", "a dog"]
    with pytest.raises(DataError, match="test: "):
        texts(tmp_path / "several", tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"text,label\na,1\nb,2,3,4\n", "Expected 2 fields in line 3, saw 4"),
        ("d.csv", b"text,label\n", "no rows"),
        ("d.csv", b"", "d.csv: EmptyDataError"),
        ("d.jsonl", b'{"text": "a"}\n{"text":', "d.jsonl: "),
        ("d.parquet", b"junk", "d.parquet: ArrowInvalid"),
        ("d.tsv", b'text\tlabel\n"an open quote\t1\nb\t0\nc"\t1\n', "row 0 holds several lines"),
        ("d.xlsx", b"", r"'\*\.xlsx'; allowed: csv, tsv, json, jsonl or parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(str(path), output_dir=tmp_path).read("train")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_path_where_nothing_lies_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    with pytest.raises(DataError, match=r"did you mean 'train\.csv'"):
        open_source(str(tmp_path / "trian.csv"), output_dir=tmp_path)


def test_an_empty_folder_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(DataError, match=r"a folder with notes\.md; allowed: one file per split"):
        open_source(str(tmp_path), output_dir=tmp_path)


def test_config_and_revision_are_for_the_hub(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path), config="rte", revision="main", output_dir=tmp_path)
    assert [fault.key for fault in caught.value.faults] == ["data.config", "data.revision"]


def test_an_unknown_builtin_names_the_one_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="allowed: 'builtin:docstrings'"):
        open_source("builtin:docs", output_dir=tmp_path)


def test_an_unreachable_hub_says_how_to_go_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"unreachable hub.*OFFLINE=1.*local file") as caught:
        open_source("nobody/nothing-of-this-name", output_dir=tmp_path)
    assert len(caught.value.faults) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "key", "message"),
    [
        (ValueError("Config name is missing.\nPick one: ['rte']"), "data.config", "rte"),
        (RuntimeError("Dataset scripts are no longer supported"), "data.source", "parquet"),
        (datasets.exceptions.DatasetNotFoundError("'x/y' doesn't exist"), "data.source", "login"),
        (sources._HTTP_ERROR("read timed out"), "data.source", "HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, key: str, message: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(DataError, match=message) as caught:
        open_source("x/y", output_dir=tmp_path)
    assert caught.value.faults[0].key == key
    assert "\n" not in str(caught.value)


def test_a_hub_source_opens_only_the_split_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class Builder:
        class info:  # noqa: N801
            splits = {"train": None, "test": None}  # noqa: RUF012

        def download_and_prepare(self) -> None:
            asked.append("prepare")

        def as_dataset(self, split: str) -> datasets.Dataset:
            asked.append(split)
            return datasets.Dataset.from_list(ROWS)

    def build(name: str, config: str | None, *, revision: str | None) -> Builder:
        asked.append((name, config, revision))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    source = open_source("owner/set", config="c", revision="v1", output_dir=tmp_path)
    assert source.names == ("train", "test")
    assert len(source.read("train")) == 2
    assert asked == [("owner/set", "c", "v1"), "prepare", "train"]
