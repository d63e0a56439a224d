"""What the trials of a search reached, all judged at the full budget.

Leaving out the trials that were stopped would hide what made them bad, and their value at an early
rung is not to be compared with others' at the end. Whether a trial is stopped is decided by what
was measured at the rung and by known costs, so given these it does not depend on what the trial
would have reached, and a regression of final values on those at the rung estimates it without bias
(missing at random; Little and Rubin, Statistical Analysis with Missing Data, 2019, chapter 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration
from autopeft.searchers import front as fronts
from autopeft.searchers.dominance import Points
from autopeft.study.records import ObjectiveFrame, TrialRecord, TrialState

RungValues = Mapping[float, Mapping[int, float]]
"""Quality in its own unit by rung (share of the full budget) and trial."""

MIN_PAIRS = 8
"""Trials that were measured at a rung and at the end, below which no slope is estimated."""

LEARNT = ("diverged", "error")
"""Causes of failure that lie in the configuration; those of the machine teach nothing."""


@dataclass(frozen=True)
class Outcomes:
    """The trials that say something about configurations, with their utilities.

    Attributes:
        configurations: What they trained.
        utilities: `[n, m]` in the order of the frames, at the full budget.
        stopped: How many were stopped, their quality at the full budget estimated.
        failed: How many diverged; they count as the constant predictor.
    """

    configurations: tuple[Configuration, ...]
    utilities: Points
    stopped: int
    failed: int


def outcomes(
    trials: Sequence[TrialRecord], frames: Sequence[ObjectiveFrame], at_rungs: RungValues
) -> Outcomes:
    """The outcomes of a study's trials.

    Baselines are left out: nobody chose them. So are trials that have not ended, and those that
    the machine failed.

    Args:
        trials: Of one study.
        frames: Its objectives, quality first.
        at_rungs: What trials measured at the rungs.
    """
    quality = frames[0]
    full = {
        trial.number: value
        for trial in trials
        if (value := trial.objectives.get(quality.name)) is not None
        and trial.state is TrialState.COMPLETED
        and trial.rung == 1.0
    }
    kept, rows, stopped, failed = [], [], 0, 0
    for trial in trials:
        value = _final(trial, quality, full, at_rungs)
        if value is None or trial.baseline is not None:
            continue
        stopped += trial.state is TrialState.STOPPED
        failed += trial.state is TrialState.FAILED
        known = {"trainable_params": float(trial.trainable_params), **trial.objectives}
        rows.append(fronts.utilities(frames, {**known, quality.name: value}))
        kept.append(trial.configuration)
    points = np.array(rows, dtype=np.float64).reshape(len(rows), len(frames))
    return Outcomes(tuple(kept), points, stopped, failed)


def _final(
    trial: TrialRecord,
    quality: ObjectiveFrame,
    full: Mapping[int, float],
    at_rungs: RungValues,
) -> float | None:
    """A trial's quality at the full budget, measured or estimated; None where it has none."""
    if trial.state is TrialState.FAILED:
        return quality.worst if trial.cause in LEARNT else None
    value = trial.objectives.get(quality.name)
    if trial.state is not TrialState.STOPPED or value is None or trial.rung is None:
        return full.get(trial.number)
    there = at_rungs.get(trial.rung, {})
    pairs = [(there[number], final) for number, final in full.items() if number in there]
    return _at_the_end(value, np.array(pairs, dtype=np.float64).reshape(len(pairs), 2))


def _at_the_end(value: float, pairs: NDArray[np.float64]) -> float:
    """The final value to expect: by least squares, with few pairs by the mean gain.

    Args:
        value: What was measured at the rung.
        pairs: `[n, 2]`, values at the rung and at the end of trials that went on.
    """
    if not len(pairs):
        return value
    early, final = pairs.T
    spread = float(((early - early.mean()) ** 2).sum())
    if len(pairs) < MIN_PAIRS or spread <= 0.0:
        return value + float((final - early).mean())
    slope = float(((early - early.mean()) * (final - final.mean())).sum()) / spread
    return float(final.mean()) + max(0.0, slope) * (value - float(early.mean()))
