"""Token ids: what lanes train on. Made once per process from checked texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from autopeft.errors import DataError, Fault
from autopeft.training.data.request import DataRequest
from autopeft.training.data.text import LabelledTexts, load_test_text, load_text_data


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that examples need."""

    model_max_length: int

    def __call__(
        self, text: Sequence[str], text_pair: Sequence[str] | None = None, **options: Any
    ) -> Mapping[str, Any]:
        """Lists of `input_ids` and, where the model has them, `token_type_ids`."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Tokenised examples, unpadded.

    Attributes:
        token_ids: n arrays of int32 [length], special tokens included.
        labels: int64 [n] (classes) or float32 [n] (regression).
        token_types: n arrays of int32 [length] that tell the texts of a pair apart, or None where
            all are 0, which is what models assume.
        targets: n arrays of bool [length], True where a token belongs to an answer and is to be
            predicted from those before it (never the first), or None where there are no answers.
        choices: Candidate answers of every row, or None.
    """

    token_ids: tuple[np.ndarray, ...]
    labels: np.ndarray
    token_types: tuple[np.ndarray, ...] | None = None
    targets: tuple[np.ndarray, ...] | None = None
    choices: "Choices | None" = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def n_tokens(self) -> int:
        """Tokens of all examples, without padding."""
        return sum(len(ids) for ids in self.token_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(len(ids) for ids in self.token_ids)


@dataclass(frozen=True, eq=False)
class Choices:
    """Candidate answers, as further examples with targets.

    Attributes:
        examples: m candidates, each behind its row's prompt.
        row: int64 [m], the row that a candidate belongs to.
        right: bool [m], True for one candidate of each row.
    """

    examples: Examples
    row: np.ndarray
    right: np.ndarray


@dataclass(frozen=True, eq=False)
class TaskData:
    """What a study trains and validates on.

    Attributes:
        train: The examples that train.
        validation: The examples that choose.
        label_names: The classes, by number; () for regression.
        fingerprint: SHA-256 (hexadecimal) of all texts and labels, see `TextData`.
        notes: What the user should know, one line each.
    """

    train: Examples
    validation: Examples
    label_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]


def load_task_data(request: DataRequest, tokenizer: Tokenizer, *, output_dir: Path) -> TaskData:
    """Train and validation as tokens; the test split is not opened.

    Args:
        request: What to read.
        tokenizer: The backbone's own.
        output_dir: The study's output directory; `data/` in it holds converted files.

    Raises:
        DataError: All faults at once.
    """
    _refuse_too_long(request, tokenizer)
    text = load_text_data(request, output_dir=output_dir)
    train = tokenise(request, tokenizer, text.train, part="train")
    validation = tokenise(request, tokenizer, text.validation, part="validation")
    notes = [
        note
        for name, examples in (("train", train), ("validation", validation))
        if (note := _length_note(name, examples, request.max_length))
    ]
    return TaskData(train, validation, text.label_names, text.fingerprint, (*text.notes, *notes))


def load_test(request: DataRequest, tokenizer: Tokenizer, *, output_dir: Path) -> Examples:
    """The test split as tokens: the only function that opens it.

    Raises:
        DataError: No test split is named, or its rows cannot be used.
    """
    _refuse_too_long(request, tokenizer)
    text = load_test_text(request, output_dir=output_dir)
    return tokenise(request, tokenizer, text, part="test")


def tokenise(
    request: DataRequest, tokenizer: Tokenizer, text: LabelledTexts, *, part: str
) -> Examples:
    """Texts as examples, cut to `request.max_length` tokens (the longer text of a pair first).

    Raises:
        DataError: A text that gives no token at all.
    """
    encoded = tokenizer(
        *(list(column) for column in text.texts),
        truncation=True,
        max_length=request.max_length,
        add_special_tokens=True,
        return_attention_mask=False,
    )
    token_ids = _arrays(encoded["input_ids"])
    empty = [row for row, ids in enumerate(token_ids) if not len(ids)]
    if empty:
        given = f"{len(empty)} {part} texts without a token, the first is row {empty[0]}"
        raise DataError(Fault(request.source, "data.text", given, "texts that are not empty"))
    types = _arrays(encoded.get("token_type_ids", ()))
    return Examples(token_ids, text.labels, types if any(row.any() for row in types) else None)


def _arrays(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(row, dtype=np.int32) for row in rows)


def _refuse_too_long(request: DataRequest, tokenizer: Tokenizer) -> None:
    if request.max_length > tokenizer.model_max_length:
        given = f"{request.max_length}, more tokens than the backbone has positions for"
        allowed = f"at most {tokenizer.model_max_length}"
        raise DataError(Fault(request.source, "data.max_length", given, allowed))


def _length_note(part: str, examples: Examples, max_length: int) -> str:
    full = sum(len(ids) >= max_length for ids in examples.token_ids)
    if not full:
        return ""
    return f"{full} of {len(examples)} {part} texts reach max_length {max_length} and may be cut"
