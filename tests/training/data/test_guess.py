from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import DataError
from autopeft.training.data.guess import guess, guess_splits
from autopeft.training.data.request import Splits

Make = Callable[..., Any]


def test_splits_text_label_and_task(folder: Path, tmp_path: Path) -> None:
    found = guess(str(folder), output_dir=tmp_path)
    assert found.splits == Splits("train", "validation", "test")
    assert (found.text, found.label) == (("text",), "label")
    assert (found.task, found.metric) == ("sequence-classification", "accuracy")
    assert set(found.reasons) == {"splits", "text", "label", "task", "metric"}
    assert "'test' was not opened" in found.reasons["splits"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train",), Splits("train", 0.1, None)),
        (("all",), Splits("all", 0.1, None)),
        (("train", "test"), Splits("train", 0.1, "test")),
        (("test_matched", "train", "validation_matched"),
         Splits("train", "validation_matched", "test_matched")),
    ],
)  # fmt: skip
def test_guess_splits(names: tuple[str, ...], splits: Splits) -> None:
    assert guess_splits(names)[0] == splits


@pytest.mark.parametrize(
    ("row", "text", "label"),
    [
        (lambda i: {"idx": i, "sentence1": "a b", "sentence2": "c d", "label": i % 2},
         ("sentence1", "sentence2"), "label"),
        (lambda i: {"Premise": "a", "Hypothesis": "b", "Target": i % 3},
         ("Premise", "Hypothesis"), "Target"),
        (lambda i: {"url": f"u{i}", "plot": f"many words stand in here {i}", "genre": "xy"[i % 2]},
         ("plot",), "genre"),
        (lambda i: {"review": f"good {i}", "title": "t", "stars": i % 5}, ("review",), "stars"),
        (lambda i: {"text": f"t {i}", "category": f"free text {i}", "kind": i % 2},
         ("text",), "kind"),
    ],
)  # fmt: skip
def test_columns(
    row: Callable[[int], dict[str, Any]],
    text: tuple[str, ...],
    label: str,
    tmp_path: Path,
    write_jsonl: Make,
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [row(i) for i in range(60)])
    found = guess(str(path), output_dir=tmp_path)
    assert (found.text, found.label) == (text, label)
    assert found.task == "sequence-classification"


@pytest.mark.parametrize(
    ("label", "task", "metric"),
    [
        (lambda i: i / 7, "regression", "spearman"),
        (lambda i: float(i % 2), "sequence-classification", "accuracy"),
        (lambda i: int(i % 5 == 0), "sequence-classification", "matthews"),
        (lambda i: max(0, i % 10 - 7), "sequence-classification", "f1"),
        (lambda i: i, "regression", "spearman"),
    ],
)
def test_task_and_metric(
    label: Callable[[int], Any], task: str, metric: str, tmp_path: Path, write_jsonl: Make
) -> None:
    rows = [{"text": f"some text {i}", "score": label(i)} for i in range(300)]
    found = guess(str(write_jsonl(tmp_path / "d.jsonl", rows)), output_dir=tmp_path)
    assert (found.label, found.task, found.metric) == ("score", task, metric)


def test_sorted_labels_are_seen_whole(tmp_path: Path, write_jsonl: Make) -> None:
    rows = [{"text": f"t {i}", "label": i // 3000} for i in range(6000)]
    found = guess(str(write_jsonl(tmp_path / "d.jsonl", rows)), output_dir=tmp_path)
    assert found.reasons["task"] == "the labels have 2 values"


def test_columns_are_listed_where_nothing_can_be_told(tmp_path: Path, write_jsonl: Make) -> None:
    rows = [{"a": i, "b": i % 2, "c": i % 3} for i in range(60)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError) as caught:
        guess(str(path), output_dir=tmp_path)
    assert [fault.key for fault in caught.value.faults] == ["data.text", "data.label"]
    assert caught.value.faults[0].allowed == "a (int64), b (int64), c (int64)"
