"""What the study argument of a command or a call stands for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.api.checking import validate
from autopeft.errors import InputError
from autopeft.study.definition import (
    StudyDefinition,
    default_definition,
    load_definition,
    parse_definition,
)
from autopeft.study.overrides import with_overrides
from autopeft.study.records import StudyRecord


def resolve_definition(
    study: StudyDefinition | Path | str | None,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
) -> StudyDefinition:
    """The definition that a search's arguments stand for; without a study, the embedded default.

    Raises:
        InputError: All faults of file and overrides.
    """
    changes = [*overrides, *([f"study.name={name}"] if name else [])]
    if study is None:
        return default_definition(changes)
    if isinstance(study, StudyDefinition):
        plain = with_overrides(study.to_plain(), changes)
        return parse_definition(plain, where="the study", base=None)
    try:
        return load_definition(Path(study), changes)
    except InputError:
        if not changes:  # the file alone is at fault: tell those of model, data and space with it
            validate(Path(study))
        raise


def stored_plain(record: StudyRecord) -> Mapping[str, Any]:
    """A stored study's definition; keys that came after it was written have their defaults."""
    try:
        return parse_definition(record.definition, where=record.name, base=None).to_plain()
    except InputError:  # of a release that allowed more: the difference tells what
        return record.definition
