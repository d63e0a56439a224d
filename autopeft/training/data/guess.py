"""What a data set's columns seem to be: the guesses that `autopeft init` prints and writes.

Names decide before contents, since names say what people meant. Every guess carries its reason.
Only the train split is opened.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from autopeft.errors import DataError, Fault
from autopeft.training.data.guess_answers import AnswerColumns, answer_columns, fitting_length
from autopeft.training.data.request import Splits, Task, listed
from autopeft.training.data.sources import open_source

_ROWS = 2000
"""About how many rows are looked at, evenly spaced: some data sets are sorted by label."""

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
)
_TEXT_NAMES = (
    "text", "sentence", "content", "review", "utterance", "question", "query", "document",
    "description", "comment", "tweet", "message", "body", "title",
)  # fmt: skip
_LABEL_NAMES = (
    "label", "labels", "target", "class", "category", "intent", "sentiment", "topic",
    "coarse_label", "score", "similarity_score", "similarity", "stars", "rating", "y",
)  # fmt: skip
_NO_LABEL = frozenset({"id", "idx", "index", "uid", "guid", "key"})
_MAX_CLASSES = 200
_FEW, _FEW_NAMED = 0.2, 0.5
"""A column with fewer distinct values than this share of its rows may hold classes; a label's
name makes it likelier."""
_LOPSIDED = 0.65
"""From this share of the largest class on, accuracy hardly tells a model from a constant."""
_SHARE = 0.1


@dataclass(frozen=True)
class Guess:
    """A data block's likely contents.

    Attributes:
        splits: Where train, validation and test seem to be.
        text: One text column, or two that make a pair; () where answers are learnt.
        label: The column to predict; "" where answers are learnt.
        task: Classes, numbers or answers.
        metric: A quality metric that suits them.
        reasons: `splits`, `text`, `label`, `task`, `metric`, ... -> why.
        answers: The data block's keys where answers are learnt, `format` and `max_length` too.
    """

    splits: Splits
    text: tuple[str, ...]
    label: str
    task: Task
    metric: str
    reasons: Mapping[str, str]
    answers: Mapping[str, str | int] = field(default_factory=dict)

    def data_keys(self) -> dict[str, Any]:
        """The data block's keys that tell how rows are read."""
        return dict(self.answers) or {"text": list(self.text), "label": self.label}


def guess(source: str, *, config: str | None = None, output_dir: Path) -> Guess:
    """The likely meaning of a data set's columns and splits.

    Args:
        source: A hub id, a path, or `builtin:docstrings`.
        config: A hub data set's configuration.
        output_dir: Where converted files are kept (in `data/`).

    Raises:
        DataError: Unreadable data, or no column that looks like text or label (all are listed).
    """
    opened = open_source(source, config=config, output_dir=output_dir)
    splits, why_splits = guess_splits(opened.names)
    if splits.train not in opened.names:
        raise DataError(Fault(source, "data.splits.train", "no train split", listed(opened.names)))
    table = opened.read(splits.train)
    step = max(1, len(table) // _ROWS)
    table = table.select(range(0, len(table), step)).with_format(None)
    label, why_label = _guess_label(table)
    answers = answer_columns(table)
    if answers is not None and (answers.sure or not label):
        return _answering(table, answers, splits, why_splits)
    text, why_text = _guess_text(table, label)
    if not label or not text:
        raise DataError(_cannot_tell(source, table, label, text))
    values = [value for value in table[label][:] if value is not None]
    task, why_task = _guess_task(values, table.features[label])
    metric, why_metric = _guess_metric(values, task)
    reasons = {
        "splits": why_splits,
        "text": why_text,
        "label": why_label,
        "task": why_task,
        "metric": why_metric,
    }
    return Guess(splits, text, label, task, metric, reasons)


def _answering(
    table: datasets.Dataset, answers: AnswerColumns, splits: Splits, why_splits: str
) -> Guess:
    """The guess where rows are prompts with answers."""
    length, why_length = fitting_length(table)
    keys: dict[str, str | int] = {"format": answers.format, **answers.keys, "max_length": length}
    reasons = {
        "splits": why_splits,
        "task": "answers are to be learnt, not labels",
        "metric": "how likely the answers become, token by token",
        "format": answers.why,
        **dict.fromkeys(answers.keys, "by name"),
        "max_length": why_length,
    }
    return Guess(splits, (), "", "causal-lm", "loss", reasons, keys)


def guess_splits(names: Sequence[str]) -> tuple[Splits, str]:
    """The likely role of each split, by name, and why."""
    train = next((name for name in ("train", "training") if name in names), "train")
    if len(names) == 1:
        train = names[0]
    others = [name for name in names if name != train]
    validation = next((n for n in others if n.startswith(("val", "dev", "eval"))), None)
    test = next((name for name in others if name.startswith("test")), None)
    found = f"the splits are {listed(names)}"
    if validation is None:
        why = f"{found}: none to validate on, so {_SHARE:g} of {train} is held out"
    else:
        why = found
    if test is not None:
        why += f"; '{test}' was not opened"
    return Splits(train, _SHARE if validation is None else validation, test), why


def _guess_label(table: datasets.Dataset) -> tuple[str, str]:
    by_lower = {name.lower(): name for name in table.column_names}
    for name in _LABEL_NAMES:
        if name in by_lower and _may_be_label(table, by_lower[name]):
            return by_lower[name], "its name"
    for name, feature in table.features.items():
        if isinstance(feature, datasets.ClassLabel):
            return name, f"it declares {feature.num_classes} classes"
    few = {name: n for name in table.column_names if (n := _n_classes(table, name))}
    if len(few) == 1:
        name, n = few.popitem()
        return name, f"the only column with few values ({n})"
    floats = [name for name, kind in _kinds(table).items() if kind.startswith(("float", "double"))]
    if not few and len(floats) == 1:
        return floats[0], "the only column of numbers"
    return "", ""


def _may_be_label(table: datasets.Dataset, name: str) -> bool:
    """A number, or a name that comes back often enough to be a class."""
    kind = _kinds(table).get(name, "")
    return bool(kind) and ("string" not in kind or _n_classes(table, name, few=_FEW_NAMED) > 0)


def _n_classes(table: datasets.Dataset, name: str, *, few: float = _FEW) -> int:
    """How many classes a column may hold; 0 where it hardly holds any."""
    kind = _kinds(table).get(name, "")
    if name.lower() in _NO_LABEL or not kind or kind.startswith(("float", "double")):
        return 0
    n = len({value for value in table[name][:] if value is not None})
    return n if 2 <= n <= min(_MAX_CLASSES, max(2, few * len(table))) else 0


def _guess_text(table: datasets.Dataset, label: str) -> tuple[tuple[str, ...], str]:
    words = _mean_words(table, label)
    by_lower = {name.lower(): name for name in words}
    for first, second in _PAIRS:
        if first in by_lower and second in by_lower:
            return (by_lower[first], by_lower[second]), "the names of a pair"
    for name in _TEXT_NAMES:
        if name in by_lower:
            return (by_lower[name],), "its name"
    if not words:
        return (), ""
    longest = max(words, key=lambda name: words[name])
    others = [name for name in words if name != longest]
    if words[longest] < 2 and others:  # columns of single words: nothing tells them apart
        return (), ""
    why = f"the longest text, {words[longest]:.0f} words on average"
    return (longest,), f"{why} (others: {listed(others)})" if others else why


def _mean_words(table: datasets.Dataset, label: str) -> dict[str, float]:
    """Mean number of words of every text column but the label and ids."""
    means = {}
    for name, kind in _kinds(table).items():
        if "string" in kind and name != label and name.lower() not in _NO_LABEL:
            texts = [value for value in table[name][:] if value is not None]
            means[name] = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    return means


def _kinds(table: datasets.Dataset) -> dict[str, str]:
    """Column -> the type of its single values; columns of lists and records are left out."""
    return {
        name: feature.dtype
        for name, feature in table.features.items()
        if isinstance(feature, datasets.Value | datasets.ClassLabel)
    }


def _guess_task(values: Sequence[Any], feature: Any) -> tuple[Task, str]:
    distinct = set(values)
    numbers = all(isinstance(value, int | float) for value in distinct)
    if any(isinstance(value, float) and not value.is_integer() for value in distinct):
        return "regression", "the labels are numbers with fractions"
    if numbers and not isinstance(feature, datasets.ClassLabel) and len(distinct) > _MAX_CLASSES:
        return "regression", f"the labels are numbers, {len(distinct)} different ones"
    return "sequence-classification", f"the labels have {len(distinct)} values"


def _guess_metric(values: Sequence[Any], task: Task) -> tuple[str, str]:
    if task == "regression":
        return "spearman", "numbers are compared by rank"
    counts = Counter(values)
    share = max(counts.values(), default=0) / max(len(values), 1)
    if share < _LOPSIDED:
        return "accuracy", "no class is much larger than the others"
    name = "matthews" if len(counts) == 2 else "f1"
    return name, f"{share:.0%} of the labels are one class, which flatters accuracy"


def _cannot_tell(
    source: str, table: datasets.Dataset, label: str, text: Sequence[str]
) -> list[Fault]:
    columns = listed([f"{name} ({_type(feature)})" for name, feature in table.features.items()])
    faults = []
    if not text:
        given = "no column that looks like text"
        hint = "write the column into data.text"
        faults.append(Fault(source, "data.text", given, columns, hint))
    if not label:
        given = "no single column that looks like a label"
        hint = "write the column into data.label"
        faults.append(Fault(source, "data.label", given, columns, hint))
    return faults


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__).lower()
