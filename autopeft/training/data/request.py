"""What to read: a study's data block as a frozen value, so that data know no study file.

Values are trusted: the study file's checks have passed. Keys that faults name are the study
file's own (`data.splits.validation`).
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Task: TypeAlias = Literal["sequence-classification", "regression", "causal-lm"]
Format: TypeAlias = Literal["classification", "prompt-completion", "messages"]

MAX_LISTED = 20
"""Names that an error lists before it says how many more there are."""


@dataclass(frozen=True)
class Splits:
    """Where each part of the data comes from.

    Attributes:
        train: A split's name.
        validation: A split's name, or a share of train in (0, 1).
        test: A split's name, a share of train, or None.
    """

    train: str = "train"
    validation: str | float = "validation"
    test: str | float | None = None


@dataclass(frozen=True)
class Limits:
    """How many examples to keep at most; None keeps all."""

    train: int | None = None
    validation: int | None = None


@dataclass(frozen=True)
class DataRequest:
    """One data set, as a study asks for it.

    Attributes:
        source: A hub id, a file, a folder with one file per split, a folder written by
            `datasets.save_to_disk`, or `builtin:docstrings`.
        text: One column, or two that make a pair; () where answers are learnt.
        label: The column of classes or numbers; "" where answers are learnt.
        task: Whether labels are classes or numbers, or answers are learnt.
        config: A hub data set's configuration.
        revision: A hub data set's branch, tag or commit.
        format: `classification` (text columns and a label column); of causal-lm
            `prompt-completion` or `messages`.
        prompt: What stands before an answer: a column, or a template as
            `autopeft.study.template` reads it.
        completion: The answer: a column or a template.
        messages: The column of chats, lists of {role, content}.
        choices: Candidate answers: a column of lists, one list for all rows, or None.
        splits: Where train, validation and test come from.
        limit: How many examples to keep.
        max_length: Tokens per example, special tokens included; longer ones are cut.
        seed: Decides shares, limits and the built-in data set's splits.
    """

    source: str
    text: tuple[str, ...] = ()
    label: str = ""
    task: Task = "sequence-classification"
    config: str | None = None
    revision: str | None = None
    format: Format = "classification"
    prompt: str = ""
    completion: str = ""
    messages: str = ""
    choices: str | tuple[str, ...] | None = None
    splits: Splits = field(default_factory=Splits)
    limit: Limits = field(default_factory=Limits)
    max_length: int = 128
    seed: int = 0


def nearest(given: str, known: Sequence[str]) -> str:
    """A hint that names the known name closest to the given one, or ""."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean '{by_lower[close[0]]}'?" if close else ""


def listed(names: Sequence[str]) -> str:
    """Names as short text: the first `MAX_LISTED` of them."""
    text = ", ".join(names[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{text} and {more} more" if more > 0 else text or "none"
