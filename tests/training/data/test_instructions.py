import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from openings import OPENING

from autopeft.errors import DataError
from autopeft.training.data.instructions import Instructions
from autopeft.training.data.request import Limits, Splits
from autopeft.training.data.text import TextData, load_test_text, load_text_data

Make = Callable[..., Any]
PROMPTS = {"task": "causal-lm", "format": "prompt-completion", "text": (), "label": ""}
CHATS = {"task": "causal-lm", "format": "messages", "messages": "messages", "text": ()}


@pytest.fixture
def load(tmp_path: Path, write_jsonl: Make, request_for: Make) -> Callable[..., TextData]:
    """Loads rows that are written as jsonl; a quarter of them validates."""

    def load(rows: list[dict[str, Any]], **changes: Any) -> TextData:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        changes = (
            PROMPTS
            | {"prompt": "q", "completion": "a", "splits": Splits("train", 0.25)}
            | (changes)
        )
        return load_text_data(request_for(path, **changes), output_dir=tmp_path / "out")

    return load


def whole(data: TextData) -> list[Any]:
    assert isinstance(data.train, Instructions)
    assert isinstance(data.validation, Instructions)
    return sorted([*data.train.turns, *data.validation.turns])


def chat(*turns: str) -> dict[str, Any]:
    """Turns such as `user hello`."""
    pairs = [turn.split(" ", 1) for turn in turns]
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


# -- prompts and completions ----------------------------------------------------------------------


def test_columns_and_templates_become_turns(load: Callable[..., TextData]) -> None:
    rows = [{"q": f"{i}+{i}", "a": 2 * i, "sure": True} for i in range(8)]
    data = load(rows, prompt="What is {q}?\n", completion="{a} ({sure})")
    assert whole(data) == sorted(
        (("user", f"What is {i}+{i}?\n"), ("assistant", f"{2 * i} (True)")) for i in range(8)
    )
    assert (len(data.train), len(data.validation)) == (6, 2)
    assert data.label_names == ()
    assert data.notes == ()
    assert data.train.labels.tolist() == [0] * 6


def test_classes_are_written_by_name(tmp_path: Path, request_for: Make) -> None:
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"q": datasets.Value("string"), "a": names})
    rows = [{"q": "x", "a": 1}, {"q": "y", "a": 0}, {"q": "z", "a": 1}]
    datasets.disable_progress_bars()
    path = tmp_path / "saved"
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(path))
    request = request_for(path, **PROMPTS, prompt="q", completion="a", splits=Splits("train", 0.4))
    data = load_text_data(request, output_dir=tmp_path)
    assert [turns[-1][1] for turns in whole(data)] == ["pos", "neg", "pos"]


def test_every_column_fault_at_once(load: Callable[..., TextData]) -> None:
    rows = [{"quest": "a", "answr": "b"} for _ in range(4)]
    with pytest.raises(DataError) as caught:
        load(
            rows,
            prompt="{quest} {hint}",
            completion="answer",
            choices="options",
            splits=Splits("train", "dev"),
        )
    assert [(fault.key, fault.given) for fault in caught.value.faults] == [
        ("data.splits.validation", "'dev'"),
        ("data.prompt", "'hint', which train lacks"),
        ("data.completion", "'answer', which train lacks"),
    ]
    assert caught.value.faults[2].hint == "did you mean 'answr'?"


def test_every_row_fault_at_once(load: Callable[..., TextData]) -> None:
    rows = [{"q": f"q{i}", "a": f"a{i}", "n": 0.5} for i in range(8)]
    rows[2]["q"] = None
    rows[5]["a"] = " \n"
    with pytest.raises(DataError) as caught:
        load(rows, prompt="{q}{n}")
    assert [(fault.key, fault.given) for fault in caught.value.faults] == [
        ("data.prompt", "nothing in column 'q' at train[2]"),
        ("data.prompt", "'n', which holds float64"),
        ("data.completion", "an empty answer at train[5]"),
    ]


def test_a_row_may_be_without_a_prompt(load: Callable[..., TextData]) -> None:
    data = load([{"q": "", "a": f"a{i}"} for i in range(4)])
    assert {turns[0] for turns in whole(data)} == {("user", "")}
    assert data.notes == ()  # not repeated: their answers differ


def test_parts_limits_and_fingerprint(load: Callable[..., TextData]) -> None:
    rows = [{"q": f"q{i}", "a": f"a{i}", "o": [f"a{i}", "b"]} for i in range(40)]
    data = load(rows, limit=Limits(20, None))
    assert (len(data.train), len(data.validation)) == (20, 10)
    assert len(set(whole(data))) == 30
    same = load(rows, limit=Limits(20, None))
    assert same.fingerprint == data.fingerprint
    others = [load(rows), load(rows, prompt="{q} "), load(rows, completion="{a} ")]
    others.append(load(rows, limit=Limits(20, None), choices="o"))
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_repeated_questions_are_counted(
    tmp_path: Path, request_for: Make, write_jsonl: Make
) -> None:
    for name, questions in (("train", "abc"), ("validation", "cxba")):
        rows = [{"q": q, "a": f"{name} {i}"} for i, q in enumerate(questions)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    request = request_for(tmp_path, **PROMPTS, prompt="q", completion="a")
    data = load_text_data(request, output_dir=tmp_path / "out")
    assert data.notes == ("3 of 4 validation texts occur in train too",)


# -- candidates -----------------------------------------------------------------------------------


def test_candidates_of_a_column(load: Callable[..., TextData]) -> None:
    rows = [{"q": f"q{i}", "a": "y" if i % 2 else "n", "o": ["n", "y", f"{i}"]} for i in range(8)]
    data = load(rows, choices="o")
    assert isinstance(data.validation, Instructions)
    assert data.validation.choices is not None
    for turns, candidates in zip(data.validation.turns, data.validation.choices, strict=True):
        assert candidates == ("n", "y", turns[0][1][1:])


def test_only_splits_that_are_compared_need_candidates(
    tmp_path: Path, request_for: Make, write_jsonl: Make
) -> None:
    row = {"q": "q", "a": "a"}
    write_jsonl(tmp_path / "train.jsonl", [row | {"a": "c"}])
    write_jsonl(tmp_path / "validation.jsonl", [row | {"o": ["a", "b"]}])
    write_jsonl(tmp_path / "test.jsonl", [row | {"o": ["b", "a"]}])
    request = request_for(
        tmp_path,
        **PROMPTS,
        prompt="q",
        completion="a",
        choices="o",
        splits=Splits("train", "validation", "test"),
    )
    data = load_text_data(request, output_dir=tmp_path / "out")
    assert isinstance(data.train, Instructions)
    assert data.train.choices is None
    test = load_test_text(request, opening=OPENING, output_dir=tmp_path / "out")
    assert isinstance(test, Instructions)
    assert test.choices == (("b", "a"),)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["a0", "a0"], "no list of candidates at train[0]"),
        (["a0"], "no list of candidates at train[0]"),
        (["a0", " "], "no list of candidates at train[0]"),
        (None, "no list of candidates at train[0]"),
        ([" a0", "b"], "the answer 'a0', which is no candidate, at train[0]"),
    ],
)
def test_candidates_that_cannot_be(
    options: Any, given: str, load: Callable[..., TextData]
) -> None:
    rows = [{"q": f"q{i}", "a": f"a{i}", "o": [f"a{i}", "b"]} for i in range(4)]
    rows[0]["o"] = options
    with pytest.raises(DataError) as caught:
        load(rows, choices="o")
    assert [(f.key, f.given) for f in caught.value.faults] == [("data.choices", given)]


def test_one_list_of_candidates(load: Callable[..., TextData]) -> None:
    rows = [{"q": f"q{i}", "a": "yes" if i % 2 else "no"} for i in range(8)]
    data = load(rows, choices=("yes", "no"))
    assert isinstance(data.validation, Instructions)
    assert data.validation.choices == (("yes", "no"),) * 2
    with pytest.raises(DataError, match=r"'no', which is no candidate.*allowed: 'yes', 'maybe'"):
        load(rows, choices=("yes", "maybe"))


# -- chats ----------------------------------------------------------------------------------------


def test_chats_end_with_their_last_answer(load: Callable[..., TextData]) -> None:
    rows = [chat("system be nice", "user hi", "assistant ho", "user bye") for _ in range(4)]
    data = load(rows, **CHATS)
    assert whole(data) == [(("system", "be nice"), ("user", "hi"), ("assistant", "ho"))] * 4


def test_chat_faults_at_once(load: Callable[..., TextData]) -> None:
    rows = [chat("user hi", "assistant ho") for _ in range(8)]
    rows[1] = {"messages": None}
    rows[2] = {"messages": []}
    rows[3] = chat("user hi")
    rows[4] = rows[6] = chat("user hi", "assistant  ")
    rows[5]["messages"][1]["content"] = None
    with pytest.raises(DataError) as caught:
        load(rows, **CHATS)
    assert {fault.key for fault in caught.value.faults} == {"data.messages"}
    assert [fault.given for fault in caught.value.faults] == [
        "nothing in column 'messages' at train[1]",
        "no list of messages at train[2]",
        "no turn of the assistant at train[3]",
        "an empty turn of the assistant at train[4], train[6]",
        "a message without a role and a text at train[5]",
    ]


def test_other_tools_chats_are_named(load: Callable[..., TextData]) -> None:
    message = {"from": "human", "value": "hi"}
    rows = [{"messages": [message]} for _ in range(4)]
    with pytest.raises(DataError, match=r"\{from, value\}.*human is user, gpt is assistant"):
        load(rows, **CHATS)
    with pytest.raises(DataError, match="no list of messages"):
        load([{"messages": json.dumps([message])} for _ in range(4)], **CHATS)


def test_rows_keep_their_candidates() -> None:
    turns = tuple((("user", f"q{i}"), ("assistant", f"a{i}")) for i in range(3))
    rows = Instructions(turns, (("a0", "b"), ("a1", "b"), ("a2", "b")))
    some = rows.rows(np.array([2, 0]))
    assert (some.turns, some.choices) == ((turns[2], turns[0]), (("a2", "b"), ("a0", "b")))
