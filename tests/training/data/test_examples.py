from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openings import OPENING
from transformers import PreTrainedTokenizerFast

from autopeft.errors import DataError
from autopeft.training.data.request import Splits
from autopeft.training.data.text import load_text_data
from autopeft.training.data.tokenising import load_task_data, load_test

Make = Callable[..., Any]


def test_tokens_of_single_texts(
    folder: Path, tmp_path: Path, request_for: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    request = request_for(folder)
    data = load_task_data(request, tokenizer, output_dir=tmp_path)
    text = load_text_data(request, output_dir=tmp_path)
    assert len(data.train) == 12
    assert data.train.token_ids[1].tolist() == [2, 5, 6, 3]  # [CLS] a cat [SEP]
    assert data.train.token_ids[1].dtype == np.int32
    assert data.train.token_types is None
    assert data.validation.labels.tolist() == [1, 0, 2, 0]
    assert data.validation.n_tokens == 4 + 4 + 4 + 3
    assert data.validation.longest == 4
    assert data.fingerprint == text.fingerprint
    assert data.label_names == ("cat", "dog", "eel")


def test_pairs_have_token_types(
    tmp_path: Path, request_for: Make, write_jsonl: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"a": "the cat", "b": "dog", "label": i % 2} for i in range(8)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    request = request_for(path, text=("a", "b"), splits=Splits("train", 0.25))
    data = load_task_data(request, tokenizer, output_dir=tmp_path)
    assert data.train.token_ids[0].tolist() == [2, 4, 6, 3, 7, 3]
    assert data.train.token_types is not None
    assert data.train.token_types[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert data.train.token_types[0].dtype == np.int32


def test_long_texts_are_cut_and_noted(
    folder: Path, tmp_path: Path, request_for: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = load_task_data(request_for(folder, max_length=3), tokenizer, output_dir=tmp_path)
    assert {len(ids) for ids in data.train.token_ids} == {3}
    assert data.train.token_ids[1].tolist() == [2, 5, 3]
    assert "12 of 12 train texts reach max_length 3 and may be cut" in data.notes


def test_more_tokens_than_positions_are_refused(
    folder: Path, tmp_path: Path, request_for: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=r"data\.max_length; got 513.*at most 512"):
        load_task_data(request_for(folder, max_length=513), tokenizer, output_dir=tmp_path)


def test_a_text_without_a_token_is_refused(
    tmp_path: Path, request_for: Make, write_jsonl: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.backend_tokenizer.post_processor = None
    rows = [{"text": "a" if i else " ", "label": i % 2} for i in range(4)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    with pytest.raises(DataError, match="1 train texts without a token, the first is row 0"):
        load_task_data(request_for(tmp_path), tokenizer, output_dir=tmp_path / "out")


def test_load_test_alone_opens_the_test_split(
    folder: Path, tmp_path: Path, request_for: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    request = request_for(folder, splits=Splits("train", "validation", "test"))
    load_task_data(request, tokenizer, output_dir=tmp_path)
    with pytest.raises(DataError, match=r"test\.csv"):
        load_test(request, tokenizer, opening=OPENING, output_dir=tmp_path)
    (folder / "test.csv").write_text("text,label\nbig cat,eel\n")
    test = load_test(request, tokenizer, opening=OPENING, output_dir=tmp_path)
    assert (test.token_ids[0].tolist(), test.labels.tolist()) == ([2, 12, 6, 3], [2])
