"""Token ids: what lanes train on. How they are made of texts is told in `tokenising`.

This module needs numpy alone, so that what trains on examples can be had without what reads data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autopeft.study.confirmation import Opening


@dataclass(frozen=True, eq=False)
class Examples:
    """Tokenised examples, unpadded.

    Attributes:
        token_ids: n arrays of int32 [length], special tokens included.
        labels: int64 [n] (classes; 0 where answers are learnt) or float32 [n] (regression).
        token_types: n arrays of int32 [length] that tell the texts of a pair apart, or None where
            all are 0, which is what models assume.
        targets: n arrays of bool [length], True where a token belongs to an answer and is
            predicted from those before it (never the first); None where labels are learnt.
        choices: Candidates for the answers, where a study compares them.
    """

    token_ids: tuple[np.ndarray, ...]
    labels: np.ndarray
    token_types: tuple[np.ndarray, ...] | None = None
    targets: tuple[np.ndarray, ...] | None = None
    choices: "Choices | None" = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, numbers: np.ndarray) -> "Examples":
        """Some of the examples, in the order given, without their candidates."""

        def some(arrays: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...] | None:
            return None if arrays is None else tuple(arrays[number] for number in numbers)

        ids = tuple(self.token_ids[number] for number in numbers)
        return Examples(ids, self.labels[numbers], some(self.token_types), some(self.targets))

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
    """Candidate answers of some examples, as further examples.

    The candidates of a row stand together, in the order of the data, behind the same prompt; only
    the candidate's own tokens are targets, its end included.

    Attributes:
        examples: m candidates behind their row's prompt.
        row: int64 [m], the number of the example that each is a candidate of; ascending.
        right: bool [m], whether it is that example's own answer: exactly one per row.
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
        label_names: The classes, by number; () for regression and for answers.
        fingerprint: SHA-256 (hexadecimal) of all that the rows say, see `TextData`.
        notes: What the user should know, one line each.
        open_test: Reads the test split, which needs the record of an opening; None where there
            is no such split to be had.
    """

    train: Examples
    validation: Examples
    label_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]
    open_test: Callable[[Opening], Examples] | None = None
