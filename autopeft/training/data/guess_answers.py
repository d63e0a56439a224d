"""Whether a data set's columns are prompts and answers, by their names.

Names such as `instruction` and `output` are given to nothing else; `question` and `answer` also
name pairs to be classified, and count only where no column looks like a label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from autopeft.training.data.request import Format

_SURE = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
)
_UNSURE = (
    ("question", "answer"),
    ("problem", "solution"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("source", "target"),
)
_CONTEXT = ("input", "context")
"""What an instruction may come with."""

_CHATS = ("messages", "conversations", "conversation")

_CHARACTERS_PER_TOKEN = 3
"""English text has about 4 in today's vocabularies; code, numbers and small vocabularies fewer."""

_LENGTHS = (64, 128, 256, 512, 1024, 2048)
_FITTING = 0.98


@dataclass(frozen=True)
class AnswerColumns:
    """How prompts and answers seem to be written.

    Attributes:
        format: `prompt-completion` or `messages`.
        keys: The data block's keys of that format.
        why: What told so.
        sure: Whether the columns mean nothing else.
    """

    format: Format
    keys: Mapping[str, str]
    why: str
    sure: bool


def answer_columns(table: datasets.Dataset) -> AnswerColumns | None:
    """The columns of prompts and answers, or None where nothing looks like them."""
    by_lower = {name.lower(): name for name in table.column_names}
    for name in _CHATS:
        if name in by_lower and _holds_chats(table.features[by_lower[name]]):
            why = f"column '{by_lower[name]}' holds lists of role and content"
            return AnswerColumns("messages", {"messages": by_lower[name]}, why, sure=True)
    for sure, pairs in ((True, _SURE), (False, _UNSURE)):
        for pair in pairs:
            if all(name in by_lower and _holds_texts(table, by_lower[name]) for name in pair):
                prompt, completion = (by_lower[name] for name in pair)
                keys = {"prompt": _prompt(table, prompt, by_lower), "completion": completion}
                why = f"columns named '{prompt}' and '{completion}'"
                return AnswerColumns("prompt-completion", keys, why, sure)
    return None


def fitting_length(table: datasets.Dataset) -> tuple[int, str]:
    """A `max_length` that most rows should fit, and why: a guess, as no tokenizer is at hand."""
    lengths = sorted(sum(map(_characters, row.values())) for row in table)
    usual = lengths[int(_FITTING * (len(lengths) - 1))]
    tokens = usual // _CHARACTERS_PER_TOKEN
    fitting = next((length for length in _LENGTHS if length >= tokens), _LENGTHS[-1])
    characters = f"{usual:,} characters, about {_CHARACTERS_PER_TOKEN} a token"
    return fitting, f"{_FITTING:.0%} of the rows have at most {characters}"


def _prompt(table: datasets.Dataset, prompt: str, by_lower: Mapping[str, str]) -> str:
    """What a prompt seems to be: a column `prompt` as it is, any other on lines of its own.

    An instruction is followed by the context that comes with it.
    """
    if prompt.lower() == "prompt":
        return prompt
    if prompt.lower() == "instruction":
        for name in _CONTEXT:
            if name in by_lower and _holds_texts(table, by_lower[name]):
                return f"{{{prompt}}}\n{{{by_lower[name]}}}\n"
    return f"{{{prompt}}}\n"


def _holds_texts(table: datasets.Dataset, column: str) -> bool:
    return getattr(table.features[column], "dtype", None) in ("string", "large_string")


def _holds_chats(feature: Any) -> bool:
    fields = getattr(feature, "feature", None)
    return isinstance(fields, Mapping) and {"role", "content"} <= fields.keys()


def _characters(value: Any) -> int:
    """The characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
