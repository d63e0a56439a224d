"""Whether a search still promises enough: what ends it by `budget.min_gain`.

A searcher that models the hypervolume tells of every proposal what it expects it to gain, per cost
of a full trial (`gain_per_cost` in the details). The best of an ask is what the search may hope
for. One ask may be unlucky: a fresh model, few Monte-Carlo samples. So two in a row have to fall
short, the newest stored cohort and the ask that would follow it, which then is not trained. Both
are functions of what is stored, so a search that was resumed ends where it would have ended.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autopeft.study.records import TrialRecord

GAIN = "gain_per_cost"
"""The key of a proposal's details."""


def best_gain(details: Iterable[Mapping[str, Any]]) -> float | None:
    """The best promise of an ask's proposals; None where none has one (the start)."""
    told = [each[GAIN] for each in details if isinstance(each.get(GAIN), int | float)]
    return max((float(gain) for gain in told if math.isfinite(gain)), default=None)


def short_of(
    min_gain: float, trials: Sequence[TrialRecord], asked: Iterable[Mapping[str, Any]]
) -> tuple[float, float] | None:
    """The best promises of the last two asks, where both fall short; else None.

    Args:
        min_gain: Hypervolume that a full trial has to promise.
        trials: The study's, of which the newest cohort counts.
        asked: Details of what is proposed now.
    """
    newest = max((trial.pack for trial in trials), default=-1)
    before = best_gain(trial.details for trial in trials if trial.pack == newest)
    now = best_gain(asked)
    if before is None or now is None or max(before, now) >= min_gain:
        return None
    return before, now
