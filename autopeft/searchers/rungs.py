"""Rungs: where trials are measured, and which of them go on.

A scalarised rule would destroy the front, so trials are compared in all objectives: one stops only
if others beat it by more than the noise at no more cost, and if it is in the worse half of what
was measured at that rung (non-dominated sorting, as in NSGA-II, Deb et al. 2002).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from autopeft.searchers.dominance import non_dominated_ranks

MIN_STEPS = 20
"""A rung shorter than this measures the warm-up, not the configuration."""

MIN_MEASURED = 8
"""Trials to be measured at a rung before any is stopped there: below, halves mean little."""

NOISE_SDS = 2.0
"""A trial must be worse by this many standard deviations of the difference's noise."""


def rung_steps(rungs: Sequence[float], *, total_steps: int, warmup_steps: int) -> dict[float, int]:
    """The optimizer step at which each rung ends; rungs that are too short are dropped.

    Args:
        rungs: Ascending shares of the full budget, the last 1.0.
        total_steps: Steps of the full budget.
        warmup_steps: Steps before which nothing is measured.
    """
    least = max(MIN_STEPS, warmup_steps + 1)
    steps = {share: math.ceil(share * total_steps) for share in rungs}
    return {share: step for share, step in steps.items() if step >= least or share == 1.0}


def noise_margin(quality: float, n_validation: int, *, worst: float, best: float) -> float:
    """The margin in utility below which two shares of correct answers are not told apart.

    The binomial standard deviation of the difference of two accuracies on the same number of
    examples, `NOISE_SDS` times, in units of the objective's frame.
    """
    share = min(max(quality, 0.05), 0.95)
    deviation = math.sqrt(2.0 * share * (1.0 - share) / n_validation)
    return NOISE_SDS * deviation / max(abs(best - worst), 1e-9)


def stopped_at_rung(
    candidates: Sequence[int],
    measured: Mapping[int, tuple[float, ...]],
    *,
    margin: float,
) -> set[int]:
    """Which candidates stop here.

    Args:
        candidates: Numbers of the trials that may stop (baselines are not among them).
        measured: Utilities (quality first) of every trial measured at this rung, by number.
        margin: Utility of quality below which trials are not told apart.

    Returns:
        Numbers to stop; empty while fewer than `MIN_MEASURED` trials were measured.
    """
    if len(measured) < MIN_MEASURED:
        return set()
    numbers = sorted(measured)
    points = np.array([measured[number] for number in numbers])
    ranks = non_dominated_ranks(points)
    median = float(np.median(ranks))
    stopped = set()
    for number in candidates:
        index = numbers.index(number)
        beaten = np.all(points[:, 1:] >= points[index, 1:], axis=1) & (
            points[:, 0] >= points[index, 0] + margin
        )
        if ranks[index] > median and bool(beaten.any()):
            stopped.add(number)
    return stopped
