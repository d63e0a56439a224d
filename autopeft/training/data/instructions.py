"""From a split's columns to prompts with answers, with every fault found on the way.

Prompts with completions and chats become the same thing: turns that end with an answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import datasets
import numpy as np

from autopeft.errors import DataError, Fault
from autopeft.study.template import parse_template
from autopeft.training.data.candidates import read_choices
from autopeft.training.data.columns import (
    missing_columns,
    no_rows,
    no_values,
    rows_text,
    type_name,
)
from autopeft.training.data.request import DataRequest

Turn: TypeAlias = tuple[str, str]
"""The role of who speaks, and what is said."""

ASSISTANT = "assistant"

_WRITTEN_AS_IT_IS = ("string", "large_string", "null", "bool", "int", "uint")
"""Types (or their beginnings) whose values have one way to be written; fractions have not."""


@dataclass(frozen=True, eq=False)
class Instructions:
    """Rows of turns, each of which ends with an answer.

    Attributes:
        turns: n rows; the last turn of a row is the assistant's. A prompt with its completion is
            a turn of the user and one of the assistant.
        choices: n rows of candidates for the last answer, which is one of them; or None.
    """

    turns: tuple[tuple[Turn, ...], ...]
    choices: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def labels(self) -> np.ndarray:
        """int64 [n], all of one class: there is nothing to stratify by."""
        return np.zeros(len(self.turns), dtype=np.int64)

    def rows(self, numbers: np.ndarray) -> "Instructions":
        """Some of the rows, in the order given."""
        turns = tuple(self.turns[row] for row in numbers)
        if self.choices is None:
            return Instructions(turns)
        return Instructions(turns, tuple(self.choices[row] for row in numbers))

    def inputs(self) -> Iterator[tuple[Any, ...]]:
        """What a model reads before the last answer; of a row without that, the whole row."""
        for turns in self.turns:
            yield turns[:-1] if any(text.strip() for _, text in turns[:-1]) else turns

    def records(self) -> Iterator[tuple[Any, ...]]:
        """All that a row says, as JSON can carry it."""
        for row, turns in enumerate(self.turns):
            yield (turns, self.choices[row] if self.choices else None)


def read_instructions(
    request: DataRequest,
    tables: Mapping[str, datasets.Dataset],
    *,
    compared: Sequence[str],
    faults: Sequence[Fault] = (),
) -> dict[str, Instructions]:
    """The rows of splits.

    Args:
        request: Its format is `prompt-completion` or `messages`.
        tables: By split.
        compared: The splits whose answers are compared with candidates, where there are any.
        faults: Known before; they are told along.

    Raises:
        DataError: All faults at once: missing columns, columns of another type, rows without
            a value, without an answer, or with an answer that is no candidate.
    """
    faults = list(faults)
    faults += missing_columns(request, tables, _wanted(request))
    if isinstance(request.choices, str):
        judged = {split: table for split, table in tables.items() if split in compared}
        faults += missing_columns(request, judged, [("data.choices", request.choices)])
    if faults:
        raise DataError(faults)
    result = {}
    for split, table in tables.items():
        turns, found = _read_turns(request, split, table)
        faults += found
        choices = None
        if request.choices is not None and split in compared and not found:
            answers = [row[-1][1] for row in turns]
            choices, found = read_choices(request, split, table, answers)
            faults += found
        result[split] = Instructions(tuple(turns), choices)
    if faults:
        raise DataError(faults)
    return result


def _wanted(request: DataRequest) -> list[tuple[str, str]]:
    """(key, column) of every column that makes up prompts and answers."""
    if request.format == "messages":
        return [("data.messages", request.messages)]
    return [
        (key, column)
        for key, written in _templates(request)
        for column in parse_template(written).columns
    ]


def _templates(request: DataRequest) -> list[tuple[str, str]]:
    return [("data.prompt", request.prompt), ("data.completion", request.completion)]


def _read_turns(
    request: DataRequest, split: str, table: datasets.Dataset
) -> tuple[list[tuple[Turn, ...]], list[Fault]]:
    if faults := no_rows(request, split, table):
        return [], faults
    if request.format == "messages":
        return _read_messages(request, split, table)
    (prompts, faults), (answers, found) = (
        _filled(request, split, table, key=key, written=written)
        for key, written in _templates(request)
    )
    faults = [*faults, *found]
    blank = [row for row, answer in enumerate(answers) if not answer.strip()]
    if blank:
        given = f"an empty answer at {rows_text(split, blank)}"
        faults.append(Fault(request.source, "data.completion", given, "an answer in every row"))
    if faults:
        return [], faults
    pairs = zip(prompts, answers, strict=True)
    return [(("user", prompt), (ASSISTANT, answer)) for prompt, answer in pairs], []


def _filled(
    request: DataRequest, split: str, table: datasets.Dataset, *, key: str, written: str
) -> tuple[list[str], list[Fault]]:
    """A template's text for every row."""
    template = parse_template(written)
    columns: dict[str, Sequence[str | None]] = {}
    faults = []
    for column in template.columns:
        feature = table.features[column]
        if not _is_written(feature):
            given = f"'{column}', which holds {type_name(feature)}"
            faults.append(
                Fault(request.source, key, given, "columns of texts or of whole numbers")
            )
            continue
        columns[column] = _as_texts(table, column)
        faults += no_values(request, split, columns[column], key=key, column=column)
    if faults:
        return [], faults
    rows = zip(*columns.values(), strict=True)
    return [template.fill(dict(zip(columns, row, strict=True))) for row in rows], []


def _is_written(feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(_WRITTEN_AS_IT_IS)


def _as_texts(table: datasets.Dataset, column: str) -> list[str | None]:
    """A column as texts; a class by its name, None where there is nothing (class -1 too)."""
    values, feature = table.with_format(None)[column][:], table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        names = dict(enumerate(feature.names))
        return [names.get(value) for value in values]
    return [None if value is None else str(value) for value in values]


def _read_messages(
    request: DataRequest, split: str, table: datasets.Dataset
) -> tuple[list[tuple[Turn, ...]], list[Fault]]:
    values = table.with_format(None)[request.messages][:]
    faults = no_values(request, split, values, key="data.messages", column=request.messages)
    rows: list[tuple[Turn, ...]] = []
    wrong: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        if value is None:
            continue
        try:
            rows.append(_chat(value))
        except ValueError as error:
            wrong.setdefault(str(error), []).append(number)
    allowed = "lists of {role, content} with turns of the assistant"
    for why, numbers in wrong.items():
        given = f"{why} at {rows_text(split, numbers)}"
        faults.append(Fault(request.source, "data.messages", given, allowed, _HINTS.get(why, "")))
    return rows, faults


_NO_ROLE = "a message without a role and a text"
_FROM = "messages of {from, value}"
_HINTS: Mapping[str, str] = {
    _FROM: "name them role (human is user, gpt is assistant) and content",
    _NO_ROLE: "calls of tools and parts that are no text cannot be learnt",
}


def _chat(value: Any) -> tuple[Turn, ...]:
    """The turns of a row up to the assistant's last; ValueError says what is wrong."""
    if not isinstance(value, list) or not value:
        raise ValueError("no list of messages")
    turns = []
    for message in value:
        if isinstance(message, Mapping) and {"from", "value"} <= message.keys():
            raise ValueError(_FROM)
        fields = message if isinstance(message, Mapping) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(_NO_ROLE)
        turns.append((role, content))
    while turns and turns[-1][0] != ASSISTANT:
        turns.pop()
    if not turns:
        raise ValueError("no turn of the assistant")
    if any(role == ASSISTANT and not content.strip() for role, content in turns):
        raise ValueError("an empty turn of the assistant")
    return tuple(turns)
