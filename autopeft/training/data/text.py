"""Checked texts of train and validation, with labels or answers: all of the data but the tokens.

`validate` and `init` need no more than this; `autopeft.training.data.examples` tokenises it.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np

from autopeft.errors import DataError, Fault
from autopeft.study.confirmation import Opening
from autopeft.training.data.columns import (
    RawColumns,
    encode_classes,
    encode_numbers,
    label_names,
    missing_columns,
    read_columns,
)
from autopeft.training.data.instructions import Instructions, read_instructions
from autopeft.training.data.request import DataRequest
from autopeft.training.data.sources import LockedSource, Source, open_source
from autopeft.training.data.splits import limited_rows, part_rows, split_faults

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts with their labels.

    Attributes:
        texts: One or two columns of n texts each.
        labels: int64 [n] (classes) or float32 [n] (regression).
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, numbers: np.ndarray) -> "LabelledTexts":
        """Some of the rows, in the order given."""
        texts = tuple(tuple(column[row] for row in numbers) for column in self.texts)
        return LabelledTexts(texts, self.labels[numbers])

    def inputs(self) -> Iterator[tuple[Any, ...]]:
        """What a model reads of each row."""
        return zip(*self.texts, strict=True)

    def records(self) -> Iterator[tuple[Any, ...]]:
        """All that a row says, as JSON can carry it."""
        return zip(*self.texts, self.labels.tolist(), strict=True)


Rows: TypeAlias = LabelledTexts | Instructions
"""Rows of either kind: with labels, or with answers."""


@dataclass(frozen=True, eq=False)
class TextData:
    """What a study trains and validates on, as text.

    Attributes:
        train: The rows that train.
        validation: The rows that choose.
        label_names: The classes, by number; () for regression and for answers.
        fingerprint: SHA-256 (hexadecimal) of all texts, labels, answers and candidates in order,
            whatever their files.
        notes: What the user should know: duplicates, classes without examples, one line each.
    """

    train: Rows
    validation: Rows
    label_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]


def load_text_data(request: DataRequest, *, output_dir: Path) -> TextData:
    """Train and validation, checked, split and limited; the test split is not opened.

    Args:
        request: What to read.
        output_dir: The study's output directory; `data/` in it holds converted files.

    Raises:
        DataError: All faults at once.
    """
    source = _open(request, output_dir)
    if isinstance(request.splits.test, str):
        source = LockedSource(source, request.splits.test)
    names = {"train": request.splits.train}
    if isinstance(request.splits.validation, str):
        names["validation"] = request.splits.validation
    parts, classes = _read(request, source, names)
    whole = parts["train"]
    train = whole.rows(part_rows(request, "train", whole.labels))
    validation = (
        parts["validation"]
        if "validation" in parts
        else whole.rows(part_rows(request, "validation", whole.labels))
    )
    _refuse_empty(request, train)
    train = _limited(train, request.limit.train, request.seed, "limit-train")
    validation = _limited(validation, request.limit.validation, request.seed, "limit-validation")
    return TextData(
        train,
        validation,
        classes,
        _fingerprint(train, validation, classes),
        tuple(_notes(train, validation, classes)),
    )


def load_test_text(request: DataRequest, *, opening: Opening, output_dir: Path) -> Rows:
    """The test split: all its rows, with the classes of train.

    Where it is a share of train, its rows lie in the same file: nothing but this gives them out,
    though the cut, which keeps the classes' shares, has seen all labels.

    Args:
        request: What to read.
        opening: The record of it, as the store gave it: nobody opens the split without one.
        output_dir: The study's output directory.

    Raises:
        DataError: No test split is named, or its rows cannot be used; all faults at once.
    """
    if request.splits.test is None:
        allowed = "a split's name, or a share of train such as 0.1"
        raise DataError(Fault(request.source, "data.splits.test", "null", allowed))
    logger.info("the test split is opened: %s", opening.to_dict())
    source = _open(request, output_dir)
    names = {"train": request.splits.train}
    if isinstance(request.splits.test, str):
        names["test"] = request.splits.test
    parts, _ = _read(request, source, names)
    if "test" in parts:
        return parts["test"]
    whole = parts["train"]
    return whole.rows(part_rows(request, "test", whole.labels))


def _open(request: DataRequest, output_dir: Path) -> Source:
    return open_source(
        request.source,
        config=request.config,
        revision=request.revision,
        output_dir=output_dir,
        seed=request.seed,
    )


def _read(
    request: DataRequest, source: Source, names: Mapping[str, str]
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Whole splits by part, and the classes; `names` maps parts (train first) to splits."""
    faults = split_faults(request, source.names)
    readable = [split for split in names.values() if split in source.names]
    if faults and isinstance(source, LockedSource):  # among them where test is asked for as train
        readable = [split for split in readable if split != source.locked]
    tables = {split: source.read(split) for split in readable}
    classes: tuple[str, ...] = ()
    by_split: Mapping[str, Rows]
    if request.format == "classification":
        by_split, classes = _read_labelled(request, tables, faults)
    else:
        chosen = [split for part, split in names.items() if part != "train"]
        compared = chosen or [names["train"]]  # shares of train validate and test
        by_split = read_instructions(request, tables, compared=compared, faults=faults)
    return {part: by_split[split] for part, split in names.items()}, classes


def _read_labelled(
    request: DataRequest, tables: Mapping[str, datasets.Dataset], faults: Sequence[Fault]
) -> tuple[dict[str, LabelledTexts], tuple[str, ...]]:
    """Texts and labels of each split (train first), and the classes; `faults` are known before."""
    wanted = [("data.text", name) for name in request.text] + [("data.label", request.label)]
    faults = list(faults)
    lacking = missing_columns(request, tables, wanted)
    faults += lacking
    if lacking:
        raise DataError(faults)
    columns = []
    for split, table in tables.items():
        read, found = read_columns(request, split, table)
        columns.append(read)
        faults += found
    if faults:
        raise DataError(faults)
    classes, labels = _encode(request, columns)
    return {
        column.split: LabelledTexts(tuple(tuple(c) for c in column.texts), numbers)
        for column, numbers in zip(columns, labels, strict=True)
    }, classes


def _encode(
    request: DataRequest, columns: list[RawColumns]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The classes and the labels of each split; train comes first."""
    classes: tuple[str, ...] = ()
    if request.task == "regression":
        encoded = [encode_numbers(request, split) for split in columns]
        faults = [fault for _, found in encoded for fault in found]
        if not faults and np.ptp(encoded[0][0]) == 0:
            given = f"{encoded[0][0][0]:g} in all rows of '{columns[0].split}'"
            faults.append(Fault(request.source, "data.label", given, "at least two values"))
    else:
        classes, faults = label_names(request, columns[0])
        if faults:
            raise DataError(faults)
        encoded = [encode_classes(request, split, classes) for split in columns]
        faults = [fault for _, found in encoded for fault in found]
    if faults:
        raise DataError(faults)
    return classes, [labels for labels, _ in encoded]


def _refuse_empty(request: DataRequest, train: Rows) -> None:
    if not len(train):
        given = "shares that leave no row to train on"
        raise DataError(Fault(request.source, "data.splits", given, "smaller shares"))


def _limited(part: Rows, limit: int | None, seed: int, purpose: str) -> Rows:
    return part.rows(limited_rows(part.labels, limit, seed=seed, purpose=purpose))


def _fingerprint(train: Rows, validation: Rows, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part in (train, validation):
        digest.update(f"\n{len(part)}\n".encode())
        for row in part.records():
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _notes(train: Rows, validation: Rows, classes: tuple[str, ...]) -> list[str]:
    notes = []
    seen = set(train.inputs())
    twice = sum(row in seen for row in validation.inputs())
    if twice:
        notes.append(f"{twice} of {len(validation)} validation texts occur in train too")
    if classes:
        for name, part in (("train", train), ("validation", validation)):
            there = set(part.labels.tolist())
            absent = [classes[i] for i in range(len(classes)) if i not in there]
            if absent:
                notes.append(f"{name} has no example of {', '.join(absent)}")
    return notes
