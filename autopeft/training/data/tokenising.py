"""From checked texts to token ids, once per process."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from autopeft.errors import DataError, Fault
from autopeft.study.confirmation import Opening
from autopeft.training.data.answers import AnsweredRow, chat_rows, prompted_rows
from autopeft.training.data.chats import chat_pieces
from autopeft.training.data.examples import Choices, Examples, TaskData
from autopeft.training.data.instructions import ASSISTANT, Instructions, Turn
from autopeft.training.data.request import DataRequest
from autopeft.training.data.text import (
    LabelledTexts,
    Rows,
    load_test_text,
    load_text_data,
)
from autopeft.training.data.tokenizer import Tokenizer


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
    made: dict[str, Examples] = {}
    notes = [*text.notes]
    faults: list[Fault] = []
    for part, rows in (("train", text.train), ("validation", text.validation)):
        try:
            made[part], found = _tokenised(request, tokenizer, rows, part=part)
            notes += [note for note in found if note not in notes]
        except DataError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise DataError(faults)
    return TaskData(
        made["train"],
        made["validation"],
        text.label_names,
        text.fingerprint,
        tuple(notes),
        partial(_opened_test, request, tokenizer, output_dir),
    )


def _opened_test(
    request: DataRequest, tokenizer: Tokenizer, output_dir: Path, opening: Opening
) -> Examples:
    return load_test(request, tokenizer, opening=opening, output_dir=output_dir)


def load_test(
    request: DataRequest, tokenizer: Tokenizer, *, opening: Opening, output_dir: Path
) -> Examples:
    """The test split as tokens: the only function that opens it.

    Args:
        request: What to read.
        tokenizer: The backbone's own.
        opening: The record of it, as the store gave it.
        output_dir: The study's output directory.

    Raises:
        DataError: No test split is named, or its rows cannot be used.
    """
    _refuse_too_long(request, tokenizer)
    text = load_test_text(request, opening=opening, output_dir=output_dir)
    return tokenise(request, tokenizer, text, part="test")


def tokenise(request: DataRequest, tokenizer: Tokenizer, rows: Rows, *, part: str) -> Examples:
    """Rows as examples of at most `request.max_length` tokens.

    Of labelled texts, the end is cut (of the longer text of a pair first); how answers keep their
    end is told in `autopeft.training.data.answers`. Candidates of answers come along where there
    are any, but not for train.

    Raises:
        DataError: A text that gives no token at all, an answer without one to predict, or chats
            that the tokenizer's template cannot write.
    """
    return _tokenised(request, tokenizer, rows, part=part)[0]


def _tokenised(
    request: DataRequest, tokenizer: Tokenizer, rows: Rows, *, part: str
) -> tuple[Examples, list[str]]:
    """Examples, and notes on them."""
    if isinstance(rows, Instructions):
        return _answered(request, tokenizer, rows, part=part)
    examples = _labelled(request, tokenizer, rows, part=part)
    note = _length_note(part, examples, request.max_length)
    return examples, [note] if note else []


def _labelled(
    request: DataRequest, tokenizer: Tokenizer, text: LabelledTexts, *, part: str
) -> Examples:
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


def _answered(
    request: DataRequest, tokenizer: Tokenizer, rows: Instructions, *, part: str
) -> tuple[Examples, list[str]]:
    whole = _answered_rows(request, tokenizer, rows.turns, part=part)
    kept = [row.cut(request.max_length) for row in whole]
    _refuse_untargeted(request, kept, range(len(rows)), what=f"{part} answers")
    choices = None
    if rows.choices is not None and part != "train":
        choices = _choices(request, tokenizer, rows, part=part)
    notes = _cut_notes(part, whole, kept, request.max_length)
    return _examples(kept, choices), [*_end_notes(tokenizer, whole), *notes]


def _choices(
    request: DataRequest, tokenizer: Tokenizer, rows: Instructions, *, part: str
) -> Choices:
    """The candidates of every row; those of one row are cut to the same prompt."""
    pairs = [(number, text) for number, texts in enumerate(rows.choices or ()) for text in texts]
    turns = [(*rows.turns[number][:-1], (ASSISTANT, text)) for number, text in pairs]
    whole = _answered_rows(request, tokenizer, turns, part=f"{part} candidates")
    numbers = [number for number, _ in pairs]
    longest = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(longest, numbers, [candidate.answer_length for candidate in whole])
    cut = [
        candidate.only_last_answer().cut(request.max_length, room=int(longest[number]))
        for number, candidate in zip(numbers, whole, strict=True)
    ]
    _refuse_untargeted(request, cut, numbers, what=f"{part} candidates")
    right = np.array([rows.turns[number][-1][1] == text for number, text in pairs], dtype=bool)
    return Choices(_examples(cut), np.array(numbers, dtype=np.int64), right)


def _refuse_untargeted(
    request: DataRequest, rows: Sequence[AnsweredRow], numbers: Sequence[int], *, what: str
) -> None:
    untargeted = [n for n, row in zip(numbers, rows, strict=True) if not row.targets().any()]
    if untargeted:
        given = f"{len(untargeted)} {what} without a token to predict"
        given = f"{given}, the first at row {untargeted[0]}"
        hint = "what comes first in a row is not predicted: put a prompt before the answer"
        key = "data.messages" if request.format == "messages" else "data.completion"
        raise DataError(Fault(request.source, key, given, "answers with tokens", hint))


def _answered_rows(
    request: DataRequest, tokenizer: Tokenizer, turns: Sequence[Sequence[Turn]], *, part: str
) -> list[AnsweredRow]:
    if request.format == "messages":
        return chat_rows(tokenizer, chat_pieces(request, tokenizer, turns, part=part))
    prompts, answers = zip(*((row[0][1], row[-1][1]) for row in turns), strict=True)
    return prompted_rows(tokenizer, prompts, answers)


def _examples(rows: Sequence[AnsweredRow], choices: Choices | None = None) -> Examples:
    return Examples(
        tuple(row.ids for row in rows),
        np.zeros(len(rows), dtype=np.int64),
        targets=tuple(row.targets() for row in rows),
        choices=choices,
    )


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


def _cut_notes(
    part: str, whole: Sequence[AnsweredRow], kept: Sequence[AnsweredRow], max_length: int
) -> list[str]:
    pairs = list(zip(whole, kept, strict=True))
    answers = sum(before.answer_length > after.answer_length for before, after in pairs)
    prompts = sum(len(before) > len(after) for before, after in pairs) - answers
    of = f"of {len(whole)} {part}"
    notes = []
    if prompts:
        notes.append(f"{prompts} {of} prompts lose their beginning to max_length {max_length}")
    if answers:
        notes.append(f"{answers} {of} answers are longer than max_length {max_length} and cut")
    return notes


def _end_notes(tokenizer: Tokenizer, rows: Sequence[AnsweredRow]) -> list[str]:
    ends = {tokenizer.eos_token_id, *tokenizer.get_added_vocab().values()}
    if all(int(row.ids[-1]) in ends for row in rows):
        return []
    return ["answers have no end token: nothing teaches the model to end them"]
