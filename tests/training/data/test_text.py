from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from openings import OPENING

from autopeft.errors import DataError
from autopeft.training.data.request import Limits, Splits
from autopeft.training.data.text import TextData, load_test_text, load_text_data

Make = Callable[..., Any]


def keys(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    return [fault.key for fault in error.value.faults]


def load_rows(
    rows: list[dict[str, Any]],
    tmp_path: Path,
    write_jsonl: Make,
    request_for: Make,
    **changes: Any,
) -> TextData:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    changes = {"splits": Splits("train", 0.25)} | changes
    return load_text_data(request_for(path, **changes), output_dir=tmp_path / "out")


def test_texts_labels_and_names(folder: Path, tmp_path: Path, request_for: Make) -> None:
    data = load_text_data(request_for(folder), output_dir=tmp_path)
    assert data.label_names == ("cat", "dog", "eel")
    assert data.train.texts[0][:2] == ("the a", "a cat")
    assert data.validation.labels.tolist() == [1, 0, 2, 0]
    assert data.train.labels.dtype == np.int64
    assert data.notes == ()


def test_the_broken_test_split_is_never_opened(
    folder: Path, tmp_path: Path, request_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "test.csv").chmod(0)
    opened: list[str] = []
    load_dataset = datasets.load_dataset

    def watch(kind: str, *, data_files: dict[str, list[str]], **rest: Any) -> Any:
        opened.extend(Path(path).name for paths in data_files.values() for path in paths)
        return load_dataset(kind, data_files=data_files, **rest)

    monkeypatch.setattr(datasets, "load_dataset", watch)
    request = request_for(folder, splits=Splits("train", "validation", "test"))
    load_text_data(request, output_dir=tmp_path)
    assert opened == ["train.csv", "validation.csv"]
    with pytest.raises(DataError, match=r"test\.csv"):
        load_test_text(request, opening=OPENING, output_dir=tmp_path)
    assert opened[-1] == "test.csv"


def test_test_rows_have_the_classes_of_train(
    folder: Path, tmp_path: Path, request_for: Make
) -> None:
    (folder / "test.csv").write_text("text,label\nbig cat,eel\nsmall dog,dog\n")
    request = request_for(folder, splits=Splits("train", "validation", "test"))
    test = load_test_text(request, opening=OPENING, output_dir=tmp_path)
    assert test.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match=r"data\.splits\.test; got null"):
        load_test_text(request_for(folder), opening=OPENING, output_dir=tmp_path)


def test_a_share_for_test_is_apart_from_the_rest(
    tmp_path: Path, write_jsonl: Make, request_for: Make
) -> None:
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    request = request_for(path, splits=Splits("train", 0.2, 0.1))
    data = load_text_data(request, output_dir=tmp_path)
    test = load_test_text(request, opening=OPENING, output_dir=tmp_path)
    parts = [set(part.texts[0]) for part in (data.train, data.validation, test)]
    assert [len(part) for part in parts] == [28, 8, 4]
    assert set.union(*parts) == {row["text"] for row in rows}


def test_fingerprint_follows_the_rows_and_nothing_else(
    folder: Path, tmp_path: Path, request_for: Make, write_jsonl: Make
) -> None:
    first = load_text_data(request_for(folder), output_dir=tmp_path / "one")
    again = load_text_data(request_for(folder), output_dir=tmp_path / "two")
    assert first.fingerprint == again.fingerprint
    assert len(first.fingerprint) == 64
    moved = folder.rename(tmp_path / "moved")
    assert load_text_data(request_for(moved), output_dir=tmp_path).fingerprint == first.fingerprint
    limited = load_text_data(request_for(moved, limit=Limits(11, None)), output_dir=tmp_path)
    assert limited.fingerprint != first.fingerprint
    text = (moved / "validation.csv").read_text()
    (moved / "validation.csv").write_text(text.replace("red,cat", "red,dog"))
    changed = load_text_data(request_for(moved), output_dir=tmp_path)
    assert changed.fingerprint != first.fingerprint


def test_limits_keep_every_class(folder: Path, tmp_path: Path, request_for: Make) -> None:
    data = load_text_data(request_for(folder, limit=Limits(3, 2)), output_dir=tmp_path)
    assert sorted(data.train.labels) == [0, 1, 2]
    assert len(data.validation) == 2
    assert data.notes == (
        f"validation has no example of "
        f"{data.label_names[({0, 1, 2} - set(data.validation.labels.tolist())).pop()]}",
    )


def test_duplicates_are_counted(tmp_path: Path, write_jsonl: Make, request_for: Make) -> None:
    for name, texts in (("train", "abcd"), ("validation", "dxya")):
        write_jsonl(tmp_path / f"{name}.jsonl", [
            {"text": text, "label": i % 2} for i, text in enumerate(texts)
        ])  # fmt: skip
    data = load_text_data(request_for(tmp_path), output_dir=tmp_path / "out")
    assert data.notes == ("2 of 4 validation texts occur in train too",)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2, 10], ("2", "9", "10")),
        (["b", "10", "a", "b"], ("10", "a", "b")),
        ([True, False, True, False], ("False", "True")),
        ([1.0, 0.0, 1.0, 0.0], ("0", "1")),
        ([-1, 1, -1, 1], ("-1", "1")),
    ],
)
def test_class_names_are_sorted(
    labels: list[Any],
    names: tuple[str, ...],
    tmp_path: Path,
    write_jsonl: Make,
    request_for: Make,
) -> None:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels * 4)]
    assert load_rows(rows, tmp_path, write_jsonl, request_for).label_names == names


def saved(tmp_path: Path, *, train: list[int], validation: list[int]) -> Path:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    datasets.disable_progress_bars()
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(
                [{"text": f"{split} {i}", "label": label} for i, label in enumerate(labels)],
                features=features,
            )
            for split, labels in (("train", train), ("validation", validation))
        }
    ).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_class_label_order_is_kept(tmp_path: Path, request_for: Make) -> None:
    path = saved(tmp_path, train=[1, 0, 1], validation=[0, 1])
    data = load_text_data(request_for(path), output_dir=tmp_path)
    assert data.label_names == ("pos", "neg")
    assert data.train.labels.tolist() == [1, 0, 1]


def test_an_unlabelled_split_is_named(tmp_path: Path, request_for: Make) -> None:
    path = saved(tmp_path, train=[1, 0, 1], validation=[-1, -1])
    with pytest.raises(DataError, match=r"'-1'.*validation\[0\].*without labels.*0\.1"):
        load_text_data(request_for(path), output_dir=tmp_path)


def test_regression(tmp_path: Path, write_jsonl: Make, request_for: Make) -> None:
    rows = [{"text": f"t{i}", "label": i / 3} for i in range(12)]
    data = load_rows(rows, tmp_path, write_jsonl, request_for, task="regression")
    assert data.label_names == ()
    assert data.train.labels.dtype == np.float32
    assert (len(data.train), len(data.validation)) == (9, 3)
    whole = {*data.train.labels.tolist(), *data.validation.labels.tolist()}
    assert whole == {float(np.float32(i / 3)) for i in range(12)}


def test_every_fault_at_once(folder: Path, tmp_path: Path, request_for: Make) -> None:
    request = request_for(
        folder, text=("txt",), label="lable", splits=Splits("train", "validatoin", "tset")
    )
    with pytest.raises(DataError) as caught:
        load_text_data(request, output_dir=tmp_path)
    assert keys(caught) == [
        "data.splits.validation",
        "data.splits.test",
        "data.text",
        "data.label",
    ]
    assert [fault.hint for fault in caught.value.faults[2:]] == [
        "did you mean 'text'?",
        "did you mean 'label'?",
    ]


def test_missing_values_name_their_rows(
    tmp_path: Path, write_jsonl: Make, request_for: Make
) -> None:
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(20)]
    rows[3]["text"] = rows[7]["label"] = rows[8]["label"] = None
    with pytest.raises(DataError) as caught:
        load_rows(rows, tmp_path, write_jsonl, request_for)
    assert keys(caught) == ["data.text", "data.label"]
    assert "train[3]" in str(caught.value)
    assert "train[7], train[8]" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([1] * 8, {}, r"a single class \(1\) in all 8 rows"),
        ([-1] * 8, {}, "-1 marks rows without a label"),
        ([0.5, 1.5] * 4, {}, "model.task: regression"),
        (["a", "b"] * 4, {"task": "regression"}, r"'a'.*finite numbers.*sequence-classification"),
        ([2.0] * 8, {"task": "regression"}, "2 in all rows.*at least two values"),
        ([[0, 1]] * 8, {}, "one label per row"),
        ([f"id{i}" for i in range(24)], {}, "24 values in 24 rows"),
    ],
)
def test_labels_that_cannot_be_used(
    labels: list[Any],
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    write_jsonl: Make,
    request_for: Make,
) -> None:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    with pytest.raises(DataError, match=message) as caught:
        load_rows(rows, tmp_path, write_jsonl, request_for, **changes)
    assert keys(caught) == ["data.label"]


def test_a_label_that_train_lacks_is_no_class(
    folder: Path, tmp_path: Path, request_for: Make
) -> None:
    with (folder / "validation.csv").open("a") as file:
        file.write("blue,cta\nblue,fox\n")
    with pytest.raises(DataError) as caught:
        load_text_data(request_for(folder), output_dir=tmp_path)
    first, second = caught.value.faults
    assert "'cta', which is no class of train, at validation[4]" in first.given
    assert (first.allowed, first.hint) == ("cat, dog, eel", "did you mean 'cat'?")
    assert "fox" in second.given


def test_a_text_column_must_hold_texts(
    tmp_path: Path, write_jsonl: Make, request_for: Make
) -> None:
    rows = [{"text": i, "label": i % 2} for i in range(8)]
    with pytest.raises(DataError, match="'text', which holds int64; allowed: a column of texts"):
        load_rows(rows, tmp_path, write_jsonl, request_for)


def test_shares_that_leave_nothing(tmp_path: Path, write_jsonl: Make, request_for: Make) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    with pytest.raises(DataError, match="no row to train on"):
        load_rows(rows, tmp_path, write_jsonl, request_for, splits=Splits("train", 0.4, 0.4))


def test_the_test_split_cannot_be_read_by_the_way(
    folder: Path, tmp_path: Path, request_for: Make
) -> None:
    from autopeft.training.data.sources import LockedSource, open_source

    source = LockedSource(open_source(str(folder), output_dir=tmp_path), "test")
    assert source.names == ("train", "validation", "test")
    assert source.read("train").num_rows == 12
    with pytest.raises(DataError, match=r"'test', which is locked.*confirm --open-test"):
        source.read("test")
    request = request_for(folder, splits=Splits("test", "validation", "test"))
    with pytest.raises(DataError, match="another split, or a share"):
        load_text_data(request, output_dir=tmp_path)
