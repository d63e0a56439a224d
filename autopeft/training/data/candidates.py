"""Candidate answers: what `choice_accuracy` compares a row's own answer with."""

from collections.abc import Sequence
from typing import Any

import datasets

from autopeft.errors import Fault
from autopeft.training.data.columns import rows_text
from autopeft.training.data.request import DataRequest

_KEY = "data.choices"


def read_choices(
    request: DataRequest, split: str, table: datasets.Dataset, answers: Sequence[str]
) -> tuple[tuple[tuple[str, ...], ...], list[Fault]]:
    """The candidates of every row, and what is wrong with them.

    Faults: a row without two different candidates, and an answer that is none of its candidates.

    Args:
        request: Its `choices` are a column that the table has, or one list for all rows.
        split: The split's name.
        table: Its rows.
        answers: The answer of every row.
    """
    if isinstance(request.choices, str):
        values = table.with_format(None)[request.choices][:]
    else:
        values = [request.choices] * len(answers)
    faults = []
    few = [row for row, value in enumerate(values) if not _are_candidates(value)]
    if few:
        given = f"no list of candidates at {rows_text(split, few)}"
        allowed = "two texts or more in every row, none of them empty or twice"
        faults.append(Fault(request.source, _KEY, given, allowed))
    sound = sorted(set(range(len(values))).difference(few))
    strange = [row for row in sound if answers[row] not in values[row]]
    if strange:
        first = strange[0]
        answer = f"the answer '{_short(answers[first])}', which is no candidate,"
        given = f"{answer} at {rows_text(split, strange)}"
        allowed = ", ".join(f"'{_short(text)}'" for text in values[first])
        hint = "write candidates as the whole answer, spaces included"
        faults.append(Fault(request.source, _KEY, given, allowed, hint))
    if faults:
        return (), faults
    return tuple(tuple(value) for value in values), []


def _are_candidates(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(set(map(str, value))) != len(value):
        return False
    return len(value) >= 2 and all(isinstance(text, str) and text.strip() for text in value)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
