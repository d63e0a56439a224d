"""Examples with targets and candidates, from files to tokens."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openings import OPENING
from tiny_tokenizers import CHATML, byte_tokenizer

from autopeft.errors import DataError
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.data.request import Limits, Splits
from autopeft.training.data.tokenising import load_task_data, load_test

Make = Callable[..., Any]
PROMPTS = {
    "task": "causal-lm",
    "format": "prompt-completion",
    "text": (),
    "label": "",
    "prompt": "q",
    "completion": "a",
    "splits": Splits("train", 0.25),
}
CHATS = PROMPTS | {"format": "messages", "messages": "messages"}


@pytest.fixture
def load(tmp_path: Path, write_jsonl: Make, request_for: Make) -> Callable[..., TaskData]:
    def load(rows: list[dict[str, Any]], tokenizer: Any, **changes: Any) -> TaskData:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        request = request_for(path, **(PROMPTS | changes))
        return load_task_data(request, tokenizer, output_dir=tmp_path / "out")

    return load


def decoded(examples: Examples, tokenizer: Any, *, targets: bool) -> list[str]:
    assert examples.targets is not None
    return [
        tokenizer.decode(ids[marks] if targets else ids)
        for ids, marks in zip(examples.token_ids, examples.targets, strict=True)
    ]


def test_prompts_and_answers(load: Callable[..., TaskData]) -> None:
    tokenizer = byte_tokenizer(bos=True)
    data = load([{"q": f"q{i}:", "a": f" a{i}"} for i in range(8)], tokenizer)
    assert data.label_names == ()
    assert data.notes == ()
    assert data.train.labels.dtype == np.int64
    assert not data.train.labels.any()
    assert data.train.choices is None
    assert data.train.token_types is None
    for part, n in ((data.train, 6), (data.validation, 2)):
        whole = decoded(part, tokenizer, targets=False)
        answers = decoded(part, tokenizer, targets=True)
        assert len(part) == len(set(whole)) == n
        for text, answer in zip(whole, answers, strict=True):
            number = text.removeprefix("<s>q")[0]
            assert (text, answer) == (f"<s>q{number}: a{number}</s>", f" a{number}</s>")
    assert [ids.dtype for ids in data.train.token_ids] == [np.int32] * 6


def test_what_is_cut_is_noted(load: Callable[..., TaskData]) -> None:
    rows = [{"q": "x" * 30, "a": "yes"}, *({"q": "q", "a": "yes"} for _ in range(7))]
    rows[3] = {"q": "q", "a": "z" * 40}
    tokenizer = byte_tokenizer(bos=True)
    data = load(rows, tokenizer, max_length=16, splits=Splits("train", 0.01))
    texts = [*decoded(data.train, tokenizer, targets=False)]
    texts += decoded(data.validation, tokenizer, targets=False)
    assert max(len(ids) for ids in data.train.token_ids) == 16
    assert any(text.startswith("<s>xxx") and text.endswith("xyes</s>") for text in texts)
    assert "<s>" + "z" * 15 in texts
    assert sorted(note for note in data.notes if "max_length" in note) == [
        "1 of 7 train answers are longer than max_length 16 and cut",
        "1 of 7 train prompts lose their beginning to max_length 16",
    ]


def test_a_tokenizer_without_an_end_token_is_noted(load: Callable[..., TaskData]) -> None:
    rows = [{"q": f"q{i}", "a": "yes"} for i in range(8)]
    data = load(rows, byte_tokenizer(eos=False))
    assert data.notes == ("answers have no end token: nothing teaches the model to end them",)
    assert set(decoded(data.train, byte_tokenizer(), targets=True)) == {"yes"}


def test_a_template_without_an_end_token_is_noted(load: Callable[..., TaskData]) -> None:
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    plain = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    for template, notes in ((CHATML, 0), (plain, 1)):
        tokenizer = byte_tokenizer(chat_template=template)
        data = load([{"messages": messages}] * 8, tokenizer, **CHATS)
        assert len([note for note in data.notes if "end token" in note]) == notes


def test_answers_without_a_target_are_refused(load: Callable[..., TaskData]) -> None:
    rows = [{"q": "", "a": "a"} for _ in range(8)]
    tokenizer = byte_tokenizer(eos=False)
    with pytest.raises(DataError) as caught:
        load(rows, tokenizer)
    assert [fault.given for fault in caught.value.faults] == [
        "6 train answers without a token to predict, the first at row 0",
        "2 validation answers without a token to predict, the first at row 0",
    ]
    assert "put a prompt before the answer" in caught.value.faults[0].hint
    load(rows, byte_tokenizer(bos=True, eos=False))


def test_a_missing_template_is_told_once(load: Callable[..., TaskData]) -> None:
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DataError) as caught:
        load([{"messages": messages}] * 8, byte_tokenizer(), **CHATS)
    assert [fault.key for fault in caught.value.faults] == ["data.format"]


# -- candidates -----------------------------------------------------------------------------------


def test_candidates_are_examples_behind_the_same_prompt(load: Callable[..., TaskData]) -> None:
    rows = [
        {"q": f"q{i} {'long ' * (i % 3)}", "a": "no", "o": ["yes indeed", "no"] + ["so"] * (i % 2)}
        for i in range(12)
    ]
    tokenizer = byte_tokenizer(bos=True)
    data = load(rows, tokenizer, choices="o", max_length=18)
    assert data.train.choices is None
    choices = data.validation.choices
    assert choices is not None
    whole = decoded(choices.examples, tokenizer, targets=False)
    answers = decoded(choices.examples, tokenizer, targets=True)
    assert choices.row.dtype == np.int64
    assert choices.right.dtype == np.bool_
    assert sorted(set(choices.row)) == [0, 1, 2]
    assert (np.diff(choices.row) >= 0).all()
    for row in range(3):
        own = np.flatnonzero(choices.row == row)
        assert [answers[i] for i in own] == ["yes indeed</s>", "no</s>", "so</s>"][: len(own)]
        assert choices.right[own].tolist() == [False, True, False][: len(own)]
        assert len({whole[i].removesuffix(answers[i]) for i in own}) == 1


def test_candidates_in_a_chat_replace_its_last_answer(load: Callable[..., TaskData]) -> None:
    turns = ("user", "a"), ("assistant", "yes"), ("user", "b"), ("assistant", "no")
    messages = [{"role": role, "content": content} for role, content in turns]
    tokenizer = byte_tokenizer(chat_template=CHATML)
    data = load([{"messages": messages}] * 8, tokenizer, **CHATS, choices=("yes", "no"))
    assert decoded(data.validation, tokenizer, targets=True) == ["yes<|im_end|>no<|im_end|>"] * 2
    choices = data.validation.choices
    assert choices is not None
    answers = decoded(choices.examples, tokenizer, targets=True)
    assert answers == ["yes<|im_end|>", "no<|im_end|>"] * 2
    whole = decoded(choices.examples, tokenizer, targets=False)
    assert all("assistant\nyes<|im_end|>\n" in text for text in whole)


def test_the_test_split_has_candidates_too(
    tmp_path: Path, write_jsonl: Make, request_for: Make
) -> None:
    row = {"q": "q", "a": "a"}
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [row])
    splits = Splits("train", "validation", "test")
    request = request_for(tmp_path, **(PROMPTS | {"choices": ("a", "b"), "splits": splits}))
    test = load_test(request, byte_tokenizer(), opening=OPENING, output_dir=tmp_path / "out")
    assert test.choices is not None
    assert test.choices.right.tolist() == [True, False]


# -- real rows ------------------------------------------------------------------------------------


def test_gsm8k(tmp_path: Path, request_for: Make) -> None:
    beside = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("AUTOPEFT_BENCH_DATA", beside)) / "gsm8k"
    if not (folder / "train.jsonl").is_file():
        pytest.skip(f"no gsm8k in {folder.parent}; AUTOPEFT_BENCH_DATA names another folder")
    changes = {"prompt": "{question}\n", "completion": "answer", "max_length": 256}
    limits = Limits(150, 50)
    request = request_for(folder, **(PROMPTS | changes), limit=limits)
    tokenizer = byte_tokenizer(bos=True)
    data = load_task_data(request, tokenizer, output_dir=tmp_path)
    assert (len(data.train), len(data.validation)) == (150, 50)
    assert data.train.longest == 256
    answers = decoded(data.train, tokenizer, targets=True)
    ended = [answer for answer in answers if answer.endswith("</s>")]
    assert all("\n#### " in answer for answer in ended)
    cut = f"{150 - len(ended)} of 150 train answers are longer than max_length 256 and cut"
    assert cut in data.notes
