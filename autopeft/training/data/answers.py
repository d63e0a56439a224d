"""Prompts and answers as tokens, with the answers' tokens marked.

**Where prompt and answer meet.** The tokens of a prompt are those that it has alone, since alone is
how a model meets it. If the tokens of prompt and answer written together begin with them, the rest
are the answer's; if not (a token would reach across), the answer's are those that it has alone.

**What is cut.** A row that is longer than `max_length` loses the beginning of its prompt, behind
the special tokens that the tokenizer starts with. The last answer stays whole, unless it does not
fit alone: then it loses its end, and the prompt all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from autopeft.training.data.tokenizer import Tokenizer

Pieces: TypeAlias = Sequence[str]
"""A row's texts: prompt, answer, prompt, answer, ...; an answer is last."""


@dataclass(frozen=True)
class AnsweredRow:
    """One row as tokens.

    Attributes:
        ids: Its tokens; the last one is the last answer's.
        is_answer: Which of them belong to an answer.
        n_leading: How many special tokens it starts with, which are never cut.
        last_answer: Where the last answer begins.
    """

    ids: tuple[int, ...]
    is_answer: tuple[bool, ...]
    n_leading: int
    last_answer: int

    @property
    def answer_length(self) -> int:
        """Tokens of the last answer."""
        return len(self.ids) - self.last_answer

    def targets(self) -> np.ndarray:
        """bool [length]: what a model is asked to predict; of the first token it is not."""
        targets = np.array(self.is_answer, dtype=bool)
        targets[:1] = False
        return targets

    def cut(self, max_length: int, *, room: int | None = None) -> "AnsweredRow":
        """The row in at most `max_length` tokens.

        Args:
            max_length: Tokens of the row.
            room: Tokens kept free for the last answer, where they are more than it has.
        """
        space = max_length - self.n_leading
        kept = min(self.answer_length, space)
        prompt = max(0, space - max(self.answer_length, room or 0))
        begin = max(self.n_leading, self.last_answer - prompt)
        end = self.last_answer + kept
        lead = slice(0, self.n_leading)
        return AnsweredRow(
            self.ids[lead] + self.ids[begin:end],
            self.is_answer[lead] + self.is_answer[begin:end],
            self.n_leading,
            self.last_answer - begin + self.n_leading,
        )

    def only_last_answer(self) -> "AnsweredRow":
        """The row with its earlier answers taken for prompt."""
        marks = tuple(index >= self.last_answer for index in range(len(self.ids)))
        return AnsweredRow(self.ids, marks, self.n_leading, self.last_answer)


def prompted_rows(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str]
) -> list[AnsweredRow]:
    """Prompt, completion and end token of every row.

    A row starts with the special tokens that the tokenizer starts a text with (BOS), and ends
    with its end token: once, also where the completion ends with it itself. A tokenizer without
    an end token gives answers without one.
    """
    leading, end = _leading(tokenizer), tokenizer.eos_token_id
    rows = []
    for prompt, answer in _piece_ids(tokenizer, list(zip(prompts, answers, strict=True))):
        ended = answer if end is None or answer[-1:] == [end] else [*answer, end]
        rows.append(_row([[*leading, *prompt], ended if answer else []], len(leading)))
    return rows


def chat_rows(tokenizer: Tokenizer, chats: Iterable[Pieces]) -> list[AnsweredRow]:
    """Chats, in which the template has written every special token."""
    start = tokenizer.bos_token_id
    rows = []
    for pieces in _piece_ids(tokenizer, list(chats)):
        n_leading = int(start is not None and pieces[0][:1] == [start])
        rows.append(_row(pieces, n_leading))
    return rows


def _row(pieces: Sequence[Sequence[int]], n_leading: int) -> AnsweredRow:
    ids = tuple(number for piece in pieces for number in piece)
    marks = tuple(bool(index % 2) for index, piece in enumerate(pieces) for _ in piece)
    return AnsweredRow(ids, marks, n_leading, len(ids) - len(pieces[-1]))


def _leading(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    plain = _encoded(tokenizer, ["a"])[0]
    whole: list[int] = tokenizer(["a"], add_special_tokens=True)["input_ids"][0]
    starts = range(len(whole) - len(plain) + 1)
    return whole[: next(at for at in starts if whole[at : at + len(plain)] == plain)]


def _piece_ids(tokenizer: Tokenizer, rows: Sequence[Pieces]) -> list[list[list[int]]]:
    """The tokens of every piece of every row."""
    alone = [piece for pieces in rows for piece in pieces]
    joined = [first + second for pieces in rows for first, second in pairwise(pieces)]
    texts = list(dict.fromkeys([*alone, *joined]))
    ids = dict(zip(texts, _encoded(tokenizer, texts), strict=True))
    return [
        [ids[pieces[0]], *(_following(ids, *pair) for pair in pairwise(pieces))]
        for pieces in rows
    ]


def _following(ids: dict[str, list[int]], first: str, second: str) -> list[int]:
    """The tokens of a text behind another one's."""
    before, whole = ids[first], ids[first + second]
    return whole[len(before) :] if whole[: len(before)] == before else ids[second]


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    return ids
