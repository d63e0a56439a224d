"""Trials as one table: a row per trial, a column per thing that can stand on an axis."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from autopeft.study.orphans import orphan_text
from autopeft.study.records import ObjectiveFrame, TrialRecord, TrialState
from dashboard import words

FRONT = "front"
BASELINE = "baseline"
DOMINATED = "dominated"
STOPPED = "stopped"
RUNNING = "running"
FAILED = "failed"

_PROFILE_FIRST = ("train_seconds", "optimizer_steps")


@dataclass(frozen=True)
class Axis:
    """Something that can stand on an axis.

    Attributes:
        name: A column of the trial table.
        label: Its name in words.
        log: Whether its scale is logarithmic unless the reader says otherwise.
    """

    name: str
    label: str
    log: bool

    @classmethod
    def of(cls, name: str) -> "Axis":
        """The axis of a column."""
        log = name.endswith(("_params", "_bytes")) or name in ("learning_rate", "flops")
        return cls(name, words.label(name), log)


def trial_table(
    trials: Sequence[TrialRecord], front: Iterable[int], frames: Sequence[ObjectiveFrame]
) -> pd.DataFrame:
    """The trials with everything that can be plotted.

    Args:
        trials: Trials of one study.
        front: Numbers of those on the front.
        frames: The study's objectives, quality first.

    Returns:
        Columns `number`, `role` (one of this module's constants), `on_front`, `state`, `origin`,
        `baseline`, `rung`, `attempts`, `summary`, then those of `axes`: floats, nan where there is
        no value.
    """
    members = set(front)
    objectives = [frame.name for frame in frames]
    rows = [_row(trial, trial.number in members, objectives) for trial in trials]
    table = pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)))
    if table.empty:
        return pd.DataFrame(columns=[*_FIXED, *objectives, *_COUNTS])
    numeric = [name for name in table.columns if name not in _FIXED]
    table[numeric] = table[numeric].astype("float64")
    return table


_FIXED = (
    "number",
    "role",
    "on_front",
    "state",
    "origin",
    "baseline",
    "rung",
    "attempts",
    "summary",
)
_COUNTS = ("trainable_params", "head_params", "learning_rate", "optimizer_steps")


def axes(table: pd.DataFrame, frames: Sequence[ObjectiveFrame]) -> list[Axis]:
    """What the reader may put on an axis: objectives, counts, then the profile's numbers."""
    first = [*(frame.name for frame in frames), "trainable_params", "head_params"]
    rest = [name for name in table.columns if name not in _FIXED]
    names = dict.fromkeys([*first, *_PROFILE_FIRST, "learning_rate", *sorted(rest)])
    found = [Axis.of(name) for name in names if name in table.columns]
    scaled = {frame.name for frame in frames if frame.scale == "log10"}
    return [replace(axis, log=axis.log or axis.name in scaled) for axis in found]


def orphan_rows(orphans: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What came too late, oldest first: `trial`, `at`, `what`."""
    rows = [
        {"trial": each["trial"], "at": each["at"], "what": orphan_text(each["content"])}
        for each in orphans
    ]
    return pd.DataFrame(rows)


def _row(trial: TrialRecord, on_front: bool, objectives: Sequence[str]) -> dict[str, object]:
    profile = {
        name: value
        for name, value in trial.profile.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        "number": trial.number,
        "role": _role(trial, on_front),
        "on_front": on_front,
        "state": trial.state.value,
        "origin": trial.origin.value,
        "baseline": trial.baseline or "",
        "rung": trial.rung,
        "attempts": trial.attempts,
        "summary": words.summary(trial.configuration),
        **profile,
        "trainable_params": trial.trainable_params,
        "head_params": trial.head_params,
        "learning_rate": dict(trial.configuration.training).get("learning_rate"),
        "optimizer_steps": trial.optimizer_steps,
        **{name: _objective(trial, name) for name in objectives},
    }


def _objective(trial: TrialRecord, name: str) -> float | None:
    """An objective's value; counts are known of every trial, measured or not."""
    value = trial.objectives.get(name)
    if value is None and name == "trainable_params":
        return float(trial.trainable_params)
    return value


def _role(trial: TrialRecord, on_front: bool) -> str:
    if trial.state is TrialState.FAILED:
        return FAILED
    if not trial.state.final:
        return RUNNING
    if trial.baseline is not None:
        return BASELINE
    if on_front:
        return FRONT
    return STOPPED if trial.state is TrialState.STOPPED else DOMINATED
