from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.training.data.guess import guess

Make = Callable[..., Any]


def words(i: int) -> str:
    return f"some words that stand for text number {i}"


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        (lambda i: {"question": words(i), "answer": words(i)},
         {"format": "prompt-completion", "prompt": "{question}\n", "completion": "answer"}),
        (lambda i: {"prompt": words(i), "completion": words(i), "label": i % 2},
         {"format": "prompt-completion", "prompt": "prompt", "completion": "completion"}),
        (lambda i: {"instruction": words(i), "input": "", "output": words(i)},
         {"format": "prompt-completion", "prompt": "{instruction}\n{input}\n",
          "completion": "output"}),
        (lambda i: {"Instruction": words(i), "Response": words(i), "category": "ab"[i % 2]},
         {"format": "prompt-completion", "prompt": "{Instruction}\n", "completion": "Response"}),
        (lambda i: {"messages": [{"role": "user", "content": words(i)}], "source": "x"},
         {"format": "messages", "messages": "messages"}),
    ],
)  # fmt: skip
def test_answers_are_told_by_their_names(
    row: Callable[[int], dict[str, Any]],
    keys: dict[str, str],
    tmp_path: Path,
    write_jsonl: Make,
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [row(i) for i in range(60)])
    found = guess(str(path), output_dir=tmp_path)
    assert (found.task, found.metric) == ("causal-lm", "loss")
    own = found.data_keys()
    assert own.pop("max_length") == 64
    assert own == keys
    assert set(found.reasons) == {"splits", "task", "metric", "max_length", *keys}


def test_a_pair_with_a_label_is_classified(tmp_path: Path, write_jsonl: Make) -> None:
    rows = [{"question": words(i), "answer": words(i), "label": i % 2} for i in range(60)]
    found = guess(str(write_jsonl(tmp_path / "d.jsonl", rows)), output_dir=tmp_path)
    assert found.task == "sequence-classification"
    assert found.data_keys() == {"text": ["question", "answer"], "label": "label"}


@pytest.mark.parametrize(
    ("characters", "length"), [(10, 64), (600, 256), (3000, 1024), (10**5, 2048)]
)
def test_the_length_fits_most_rows(
    characters: int, length: int, tmp_path: Path, write_jsonl: Make
) -> None:
    rows = [{"prompt": "a" * (characters // 2), "completion": "b" * (characters // 2)}] * 99
    rows.append({"prompt": "a" * 10**6, "completion": "b"})
    found = guess(str(write_jsonl(tmp_path / "d.jsonl", rows)), output_dir=tmp_path)
    assert found.answers["max_length"] == length
    assert f"at most {characters:,} characters" in found.reasons["max_length"]
