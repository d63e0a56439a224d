import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autopeft.training.data.request import DataRequest

WORDS = ("the", "a", "cat", "dog", "runs", "sleeps", "red", "blue", "big", "small", "one", "two",
         "three", "four")  # fmt: skip


@pytest.fixture
def write_jsonl() -> Callable[[Path, Sequence[dict[str, Any]]], Path]:
    def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train.csv (12 rows, 3 classes), validation.csv (4 rows), and a test.csv that is broken."""
    path = tmp_path / "animals"
    path.mkdir()
    lines = [f"{WORDS[i]} {WORDS[i + 1]},{('cat', 'dog', 'eel')[i % 3]}" for i in range(12)]
    (path / "train.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (path / "validation.csv").write_text(
        "text,label\nthe dog,dog\na dog,cat\nbig one,eel\nred,cat\n"
    )
    (path / "test.csv").write_bytes(b'text,label\n"never closed,\x00\xff\n1,2,3,4')
    return path


@pytest.fixture
def request_for() -> Callable[..., DataRequest]:
    def make(source: Path | str, **changes: Any) -> DataRequest:
        defaults: dict[str, Any] = {"text": ("text",), "label": "label"}
        return DataRequest(str(source), **(defaults | changes))

    return make


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words; [CLS] a [SEP] (b [SEP]), with token types as BERT has them."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
