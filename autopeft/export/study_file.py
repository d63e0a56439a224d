"""The commented study file of `autopeft init`: every key, what it means, what was guessed.

The comments are the descriptions of the definition's own fields, so that they cannot go stale.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autopeft.study.definition import StudyDefinition
from autopeft.study.faults import model_at
from autopeft.study.layout import entry_lines

_COLUMN = 36

_HEADER = """\
# A study: one search for the best parameter-efficient fine-tuning of a model on a data set.
#
#   autopeft validate THIS_FILE     every fault at once; trains nothing
#   autopeft search THIS_FILE       run it; the same command resumes it
#
# Numbers may be written as 2M or 3e-5, bytes as 20GiB, durations as 45m, 24h or 1d. Relative
# paths start at this file's folder. A key that is left out takes its default.
"""


def study_file_text(definition: StudyDefinition, guesses: Mapping[str, str]) -> str:
    """The definition as a commented study file.

    Args:
        definition: What the file shall say; reading the file gives it back.
        guesses: Dotted key (`data.text`) -> why its value was guessed.

    Raises:
        KeyError: A guess is about a key that the file does not have.
    """
    plain = definition.to_plain()
    unknown = sorted(set(guesses) - set(_keys(plain)))
    if unknown:
        raise KeyError(f"no such keys in a study file: {', '.join(unknown)}")
    lines = [_HEADER]
    for name, value in plain.items():
        lines += ["\n", *_lines((name,), value, guesses)]
    return "".join(lines)


def _lines(key: tuple[str, ...], value: Any, guesses: Mapping[str, str]) -> Iterator[str]:
    """The lines of one key: a block key by key, anything else with its comment."""
    indent = 2 * (len(key) - 1)
    block = model_at(StudyDefinition, key) if isinstance(value, Mapping) else None
    meaning = (block.__doc__ or "").split("\n")[0] if block else _field(key).description
    reason = guesses.get(".".join(key))
    if meaning and (block or reason is not None):
        yield f"{' ' * indent}# {meaning}\n"
    remark = meaning if reason is None else f"guessed: {' '.join(reason.split())}"
    if block:
        yield _commented(f"{' ' * indent}{key[-1]}:", remark if reason is not None else "")
        for name, inner in value.items():
            yield from _lines((*key, name), inner, guesses)
        return
    first, *rest = entry_lines(key[-1], value, indent)
    yield _commented(first.rstrip("\n"), remark)
    yield from rest


def _commented(line: str, comment: str | None) -> str:
    return f"{line:<{_COLUMN}}  # {comment}\n" if comment else f"{line}\n"


def _field(key: tuple[str, ...]) -> FieldInfo:
    block: type[BaseModel] | None = model_at(StudyDefinition, key[:-1])
    fields = (block or StudyDefinition).model_fields
    by_key = {field.alias or name: field for name, field in fields.items()}
    return by_key[key[-1]]


def _keys(plain: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted keys that have a line of their own."""
    for name, value in plain.items():
        yield ".".join((*above, name))
        if isinstance(value, Mapping) and model_at(StudyDefinition, (*above, name)):
            yield from _keys(value, (*above, name))
