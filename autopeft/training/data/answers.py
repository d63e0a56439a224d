"""Prompts and answers as tokens, with the answers' tokens marked.

**Where prompt and answer meet.** The tokens of a prompt are those that it has alone, since alone
is how a model meets it. If the tokens of prompt and answer written together begin with them, the
rest are the answer's; if not (a token would reach across), the answer's are those it has alone.

**What is cut.** A row that is longer than `max_length` loses the beginning of its prompt, behind
the special tokens that the tokenizer starts with. The last answer stays whole, unless it does not
fit alone: then it loses its end, and the prompt all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from autopeft.training.data.tokenizer import Tokenizer

Pieces: TypeAlias = Sequence[str]
"""A row's texts: prompt, answer, prompt, answer, ...; an answer is last."""


_ROWS_AT_ONCE = 1000
"""So that the tokens of a large data set are never all Python numbers at once."""


@dataclass(frozen=True, eq=False)
class AnsweredRow:
    """One row as tokens.

    Attributes:
        ids: int32 [length]; the last token is the last answer's.
        is_answer: bool [length], which of them belong to an answer.
        n_leading: How many special tokens it starts with, which are never cut.
        last_answer: Where the last answer begins.
    """

    ids: np.ndarray
    is_answer: np.ndarray
    n_leading: int
    last_answer: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def answer_length(self) -> int:
        """Tokens of the last answer."""
        return len(self.ids) - self.last_answer

    def targets(self) -> np.ndarray:
        """bool [length]: what a model is asked to predict; of the first token it is not."""
        targets = self.is_answer.copy()
        targets[:1] = False
        return targets

    def cut(self, max_length: int, *, room: int = 0) -> "AnsweredRow":
        """The row in at most `max_length` tokens.

        Args:
            max_length: Tokens of the row.
            room: Tokens kept free for the last answer, where they are more than it has.
        """
        space = max_length - self.n_leading
        n_prompt = max(0, space - max(self.answer_length, room))
        begin = max(self.n_leading, self.last_answer - n_prompt)
        end = self.last_answer + min(self.answer_length, space)
        kept = np.r_[0 : self.n_leading, begin:end]
        last_answer = self.last_answer - begin + self.n_leading
        return AnsweredRow(self.ids[kept], self.is_answer[kept], self.n_leading, last_answer)

    def only_last_answer(self) -> "AnsweredRow":
        """The row with its earlier answers taken for prompt."""
        is_answer = np.arange(len(self.ids)) >= self.last_answer
        return AnsweredRow(self.ids, is_answer, self.n_leading, self.last_answer)


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
        ended = answer if not answer or end in (None, answer[-1]) else [*answer, end]
        rows.append(_row([[*leading, *prompt], ended], len(leading)))
    return rows


def chat_rows(tokenizer: Tokenizer, chats: Sequence[Pieces]) -> list[AnsweredRow]:
    """Chats, in which the template has written every special token."""
    start = tokenizer.bos_token_id
    return [
        _row(pieces, int(start is not None and pieces[0][:1] == [start]))
        for pieces in _piece_ids(tokenizer, chats)
    ]


def _row(pieces: Sequence[Sequence[int]], n_leading: int) -> AnsweredRow:
    lengths = [len(piece) for piece in pieces]
    ids = np.concatenate([np.array(piece, dtype=np.int32) for piece in pieces])
    is_answer = np.repeat(np.arange(len(pieces)) % 2 == 1, lengths)
    return AnsweredRow(ids, is_answer, n_leading, sum(lengths[:-1]))


def _leading(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    plain = _encoded(tokenizer, ["a"])["a"]
    whole: list[int] = tokenizer(["a"], add_special_tokens=True)["input_ids"][0]
    starts = range(len(whole) - len(plain) + 1)
    return whole[: next(at for at in starts if whole[at : at + len(plain)] == plain)]


def _piece_ids(tokenizer: Tokenizer, rows: Sequence[Pieces]) -> Iterator[list[list[int]]]:
    """The tokens of every piece of every row."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        pairs = [pair for pieces in some for pair in pairwise(pieces)]
        texts = [text for first, second in pairs for text in (first, first + second)]
        ids = _encoded(tokenizer, texts)
        across = [second for first, second in pairs if _rest(ids, first, second) is None]
        ids |= _encoded(tokenizer, across)
        for pieces in some:
            following = [_rest(ids, *pair) for pair in pairwise(pieces)]
            yield [
                ids[piece] if found is None else found
                for piece, found in zip(pieces, [ids[pieces[0]], *following], strict=True)
            ]


def _rest(ids: Mapping[str, list[int]], first: str, second: str) -> list[int] | None:
    """The tokens of a text behind another's, or None where a token reaches across."""
    before, whole = ids[first], ids[first + second]
    return whole[len(before) :] if whole[: len(before)] == before else None


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, list[int]]:
    """The tokens of each text, without special tokens of the tokenizer's own."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encoded = tokenizer(
        distinct, add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return dict(zip(distinct, encoded["input_ids"], strict=True))
