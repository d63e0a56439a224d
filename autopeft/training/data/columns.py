"""From a split's columns to texts and labels, with every fault found on the way.

Row numbers in faults count from 0, as `datasets` does: `train[12]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from autopeft.errors import Fault
from autopeft.training.data.request import DataRequest, listed, nearest

_TEXT_TYPES = frozenset({"string", "large_string", "null"})
_MAX_ROWS_LISTED = 5
_SMALLEST_TO_DOUBT = 20
"""From so many rows on, labels that are mostly different are taken for something else."""


@dataclass(frozen=True)
class RawColumns:
    """A split's columns before labels have numbers.

    Attributes:
        split: The split's name.
        texts: One or two columns of n texts.
        labels: n raw labels.
        class_names: The names of a `ClassLabel` column; () for any other.
    """

    split: str
    texts: tuple[Sequence[str], ...]
    labels: Sequence[Any]
    class_names: tuple[str, ...] = ()


def missing_columns(
    request: DataRequest,
    tables: Mapping[str, datasets.Dataset],
    wanted: Sequence[tuple[str, str]],
) -> list[Fault]:
    """A fault per wanted (key, column) that some split lacks."""
    faults = []
    for key, column in wanted:
        without = [split for split, table in tables.items() if column not in table.column_names]
        if without:
            there = tables[without[0]].column_names
            given = f"'{column}', which {' and '.join(without)} lacks"
            faults.append(Fault(request.source, key, given, listed(there), nearest(column, there)))
    return faults


def read_columns(
    request: DataRequest, split: str, table: datasets.Dataset
) -> tuple[RawColumns, list[Fault]]:
    """The columns of a split that has them all, and what is wrong with their rows.

    Faults: no rows, a text column that holds no text, a missing text or label.
    """
    if faults := no_rows(request, split, table):
        return RawColumns(split, tuple([] for _ in request.text), []), faults
    for column in request.text:
        feature = table.features[column]
        if not isinstance(feature, datasets.Value) or feature.dtype not in _TEXT_TYPES:
            given = f"'{column}', which holds {type_name(feature)}"
            faults.append(Fault(request.source, "data.text", given, "a column of texts"))
    feature = table.features[request.label]
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        given = f"'{request.label}', which holds {type_name(feature)}"
        faults.append(Fault(request.source, "data.label", given, "one label per row"))
    if faults:
        return RawColumns(split, tuple([] for _ in request.text), []), faults
    plain = table.with_format(None)
    texts = tuple(plain[column][:] for column in request.text)
    labels = plain[request.label][:]
    for key, column, values in [
        *(("data.text", name, values) for name, values in zip(request.text, texts, strict=True)),
        ("data.label", request.label, labels),
    ]:
        faults += no_values(request, split, values, key=key, column=column)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    return RawColumns(split, texts, labels, names), faults


def no_rows(request: DataRequest, split: str, table: datasets.Dataset) -> list[Fault]:
    """A fault where a split is empty."""
    given = f"split '{split}' without rows"
    fault = Fault(request.source, "data.splits", given, "at least one row")
    return [] if len(table) else [fault]


def no_values(
    request: DataRequest, split: str, values: Sequence[Any], *, key: str, column: str
) -> list[Fault]:
    """A fault where rows of a column hold nothing."""
    missing = [row for row, value in enumerate(values) if value is None]
    given = f"nothing in column '{column}' at {rows_text(split, missing)}"
    return [Fault(request.source, key, given, "a value in every row")] if missing else []


def rows_text(split: str, rows: Sequence[int]) -> str:
    """Rows as short text: `train[3], train[8] and 40 more`."""
    text = ", ".join(f"{split}[{row}]" for row in rows[:_MAX_ROWS_LISTED])
    more = len(rows) - _MAX_ROWS_LISTED
    return f"{text} and {more} more" if more > 0 else text


def label_names(request: DataRequest, train: RawColumns) -> tuple[tuple[str, ...], list[Fault]]:
    """The classes in their final order, and what is wrong with them.

    A `ClassLabel` column keeps its order; numbers are sorted as numbers (false before true),
    names by code point. Class i of a model is `names[i]`.
    """
    values = [_class_of(value) for value in train.labels]
    distinct = set(values)
    if any(isinstance(value, float) for value in distinct):
        rows = [row for row, value in enumerate(values) if isinstance(value, float)]
        given = (
            f"{values[rows[0]]:g} in column '{request.label}' at {rows_text(train.split, rows)}"
        )
        hint = "write model.task: regression for numbers"
        return (), [Fault(request.source, "data.label", given, "classes", hint)]
    if len(distinct) < 2:
        only = _shown(train, next(iter(distinct)))
        given = f"a single class ({only}) in all {len(values)} rows of '{train.split}'"
        hint = "-1 marks rows without a label" if distinct == {-1} else ""
        return (), [Fault(request.source, "data.label", given, "at least two classes", hint)]
    if train.class_names:
        return train.class_names, []
    if len(values) >= _SMALLEST_TO_DOUBT and len(distinct) > len(values) / 2:
        given = f"'{request.label}', which has {len(distinct)} values in {len(values)} rows"
        hint = "name the column of classes, or write model.task: regression for numbers"
        return (), [Fault(request.source, "data.label", given, "a column of classes", hint)]
    is_text = any(isinstance(value, str) for value in distinct)
    ordered = sorted(distinct, key=str) if is_text else sorted(distinct)
    return tuple(str(value) for value in ordered), []


def encode_classes(
    request: DataRequest, columns: RawColumns, names: tuple[str, ...]
) -> tuple[np.ndarray, list[Fault]]:
    """Labels as class numbers, int64 [n]; a fault per label that is not a class."""
    number = {name: index for index, name in enumerate(names)}
    shown = [_shown(columns, _class_of(value)) for value in columns.labels]
    strange: dict[str, list[int]] = {}
    for row, name in enumerate(shown):
        if name not in number:
            strange.setdefault(name, []).append(row)
    if strange:
        return np.zeros(0, dtype=np.int64), [
            _not_a_class(request, columns.split, name, rows, names)
            for name, rows in list(strange.items())[:_MAX_ROWS_LISTED]
        ]
    return np.array([number[name] for name in shown], dtype=np.int64), []


def encode_numbers(request: DataRequest, columns: RawColumns) -> tuple[np.ndarray, list[Fault]]:
    """Labels as numbers, float32 [n]; a fault where some are none."""
    wrong = [
        row
        for row, value in enumerate(columns.labels)
        if not isinstance(value, int | float) or not np.isfinite(value)
    ]
    if wrong:
        value = columns.labels[wrong[0]]
        given = f"{value!r} in column '{request.label}' at {rows_text(columns.split, wrong)}"
        hint = "write model.task: sequence-classification for classes"
        return np.zeros(0, dtype=np.float32), [
            Fault(request.source, "data.label", given, "finite numbers", hint)
        ]
    return np.array(columns.labels, dtype=np.float32), []


def _not_a_class(
    request: DataRequest, split: str, name: str, rows: list[int], names: tuple[str, ...]
) -> Fault:
    given = f"'{name}', which is no class of train, at {rows_text(split, rows)}"
    if name == "-1":
        hint = f"'{split}' seems to be without labels: take another split, or a share such as 0.1"
    else:
        hint = nearest(name, names)
    return Fault(request.source, "data.label", given, listed(names), hint)


def _class_of(value: Any) -> Any:
    """A label as a class: whole floats are integers (a csv column with a gap was read so)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _shown(columns: RawColumns, value: Any) -> str:
    """A class's name; a number outside a `ClassLabel` column's names stays a number."""
    if columns.class_names and isinstance(value, int) and 0 <= value < len(columns.class_names):
        return columns.class_names[value]
    return str(value)


def type_name(feature: Any) -> str:
    """What a column holds, as short text."""
    return str(getattr(feature, "dtype", None) or type(feature).__name__).lower()
