"""What was measured: one row per training or probe, in one parquet file per benchmark."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

NAME = "importance-rules.parquet"
"""This benchmark's; others keep rows of the same form in files of their own."""

RATE, TRIAL, PROBE = "rate", "trial", "probe"
"""Stages: trainings that choose a learning rate, those that are reported, and timed steps."""

SLOT = ["stage", "task", "arm", "rank", "replicate", "rate"]
"""What a row is of. A trial has one rate only: that which was chosen."""

COLUMNS = [
    *SLOT,
    "hash",
    "ground",
    "params",
    "accuracy",
    "loss",
    "diverged",
    "cpu_seconds",
    "seconds",
    "step_seconds",
    "step_cpu_seconds",
    "step_ratio",
    "peak_bytes",
]


def load(tables: Path, name: str = NAME) -> pd.DataFrame:
    """All rows; none at first."""
    path = tables / name
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=COLUMNS)


def put(tables: Path, rows: Sequence[dict[str, Any]], name: str = NAME) -> None:
    """Add rows in the place of older ones of the same slot; several processes may at once."""
    tables.mkdir(parents=True, exist_ok=True)
    path = tables / name
    fresh = pd.DataFrame(rows, columns=COLUMNS)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        every = load(tables, name)
        kept = every[[slot not in set(_slots(fresh)) for slot in _slots(every)]]
        every = pd.concat([kept, fresh], ignore_index=True) if len(kept) else fresh
        every.to_parquet(path.with_suffix(".tmp"), index=False)
        path.with_suffix(".tmp").replace(path)


def has(every: pd.DataFrame, row: dict[str, Any]) -> bool:
    """Whether a row's slot holds the same configuration, trained on the same ground."""
    wanted = [*SLOT, "hash", "ground"]
    if every.empty:
        return False
    same = pd.Series(True, index=every.index)
    for name in wanted:
        same &= every[name] == row[name]
    return bool(same.any())


def _slots(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    """A slot of a trial has no rate of its own: a later choice replaces an earlier one."""
    found = rows[SLOT].copy()
    found["rate"] = found["rate"].where(found["stage"] == RATE, 0.0)
    return list(found.itertuples(index=False, name=None))
