"""Which rows train, validate and test: named splits, shares of train, limits.

One seeded order does it all: every stretch of it holds each class in nearly its own share. So a
share is a cut, a limit is a beginning, and a smaller limit keeps a part of a larger one's rows.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from autopeft.errors import Fault
from autopeft.training.data.request import DataRequest, listed, nearest


def split_faults(request: DataRequest, names: Sequence[str]) -> list[Fault]:
    """A fault per split that is asked for and is not there, or is asked for twice."""
    faults = []
    taken: dict[str, str] = {}
    for part in ("train", "validation", "test"):
        choice = getattr(request.splits, part)
        key = f"data.splits.{part}"
        if not isinstance(choice, str):
            continue
        if choice not in names:
            hint = nearest(choice, names) or _split_hint(part, names)
            faults.append(Fault(request.source, key, f"'{choice}'", listed(names), hint))
        elif choice in taken:
            given = f"'{choice}', which is {taken[choice]}'s already"
            faults.append(Fault(request.source, key, given, "another split, or a share"))
        taken.setdefault(choice, part)
    return faults


def _split_hint(part: str, names: Sequence[str]) -> str:
    if part == "train":
        return ""
    like = [name for name in names if name.startswith(("val", "dev", "eval"))]
    if part == "validation" and like:
        return f"write '{like[0]}', or a share of train such as 0.1"
    return f"write {part}: 0.1 to take a share of train"


def part_rows(request: DataRequest, part: str, labels: np.ndarray) -> np.ndarray:
    """The rows of the train split that make up one part, before limits.

    Args:
        request: Its `splits` say which parts are shares.
        part: `train`, or `validation` or `test` where that is a share.
        labels: [n] of the whole train split.

    Returns:
        Row numbers, ascending.
    """
    n = len(labels)
    n_validation, n_test = (
        0 if choice is None or isinstance(choice, str) else max(1, round(choice * n))
        for choice in (request.splits.validation, request.splits.test)
    )
    # Train comes first in the order, where every class has its first row: none is left out of it.
    ends = {"train": n - n_validation - n_test, "validation": n - n_test, "test": n}
    starts = {"train": 0, "validation": ends["train"], "test": ends["validation"]}
    order = stratified_order(labels, seed=request.seed, purpose="share")
    return np.sort(order[max(starts[part], 0) : max(ends[part], 0)])


def limited_rows(labels: np.ndarray, limit: int | None, *, seed: int, purpose: str) -> np.ndarray:
    """At most `limit` row numbers, ascending, classes in their own shares."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    return np.sort(stratified_order(labels, seed=seed, purpose=purpose)[:limit])


def stratified_order(labels: np.ndarray, *, seed: int, purpose: str) -> np.ndarray:
    """A seeded order of rows of which every stretch holds each class in nearly its own share.

    Row number r (from 0) of a class with c rows stands at r/c; the first rows of all classes come
    first, so a beginning of at least as many rows as classes holds every class.

    Args:
        labels: int64 [n] classes, or float32 [n], which are merely shuffled.
        seed: The study's seed.
        purpose: Makes the orders of different uses independent.

    Returns:
        int64 [n], a permutation.
    """
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    shuffled = rng.permutation(len(labels))
    if labels.dtype.kind == "f":
        return shuffled
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = np.arange(len(members)) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]
