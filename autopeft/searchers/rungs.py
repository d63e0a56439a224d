"""Rungs: where trials are measured, and which of them go on.

A scalarised rule would destroy the front, so trials are compared in all objectives, by layers of
non-dominated trials as in NSGA-II (Deb et al. 2002), and within a layer by crowding, which keeps
its ends. A trial stops only where two things come together: it is outside the share that goes on,
and a trial that costs no more is better by more than the noise. So no trial of a rung's front is
ever stopped, nor one that noise may have kept off it.
"""

import math
from collections.abc import Sequence

import numpy as np

from autopeft.searchers.dominance import Points, non_dominated_ranks
from autopeft.searchers.evidence import Reading, Vector

MIN_STEPS = 20
"""A rung shorter than this measures the warm-up, not the configuration."""

APART = 1.5
"""A rung that had to be moved up is left out where the next is less than this many times as long:
two evaluations would tell the same."""

LATEST = 0.5
"""A rung that had to be moved up beyond this share of the budget is left out: too little is left
to save for what it costs to evaluate."""

KEEP = 0.4
"""Share of the trials measured at a rung that go on whatever the noise; see `docs/results.md`,
"Stopping early", for what other shares save and lose."""

NOISE_SDS = 1.0
"""A trial is beaten where another leads by this many standard deviations of the difference."""


def rung_steps(rungs: Sequence[float], *, total_steps: int, warmup_steps: int) -> dict[float, int]:
    """The optimizer step at which each rung ends.

    Rungs that are too short make room for one at the smallest step that measures something, so
    that a short training has an early rung too.

    Args:
        rungs: Ascending shares of the full budget, the last 1.0.
        total_steps: Steps of the full budget.
        warmup_steps: Steps before which nothing is measured.

    Returns:
        By the share of the budget that each truly ends at or was asked for, ascending.
    """
    least = max(MIN_STEPS, warmup_steps + 1)
    steps = {share: math.ceil(share * total_steps) for share in rungs}
    kept = {share: step for share, step in steps.items() if step >= least or share == 1.0}
    following = min(kept.values())
    moved = len(kept) < len(steps) and least <= LATEST * total_steps
    if moved and following >= APART * least:
        return {round(least / total_steps, 4): least} | kept
    return kept


def stopped_at_rung(
    candidates: Sequence[int],
    numbers: Sequence[int],
    costs: Points,
    readings: Sequence[Reading],
    *,
    keep: float = KEEP,
    noise_sds: float = NOISE_SDS,
) -> set[int]:
    """Which candidates stop here, by all that was measured at the rung so far.

    Args:
        candidates: Numbers of the trials that may stop (baselines are not among them).
        numbers: Every trial measured at this rung, ascending.
        costs: `[n, m - 1]` utilities of their other objectives.
        readings: Views of their quality; the first, in which none is nan, ranks them. In any of
            them a trial may be beaten.
        keep: Share that goes on whatever the noise.
        noise_sds: Standard deviations of a difference within which trials are not told apart.

    Returns:
        Numbers to stop: the same points whatever their numbers, and the same answer whenever the
        same measurements are given.
    """
    if not numbers:
        return set()
    quality = readings[0].values
    behind = _behind(quality, costs)
    beaten = np.zeros(len(numbers), dtype=np.bool_)
    for reading in readings:
        if reading.noise is not None:
            margin = noise_sds * math.sqrt(2.0) * reading.noise
            beaten |= _behind(reading.values, costs) > margin
    beaten &= behind > 0.0
    order = _ranked(np.column_stack([quality, costs]), numbers)
    beaten[order[: math.ceil(keep * len(numbers) - 1e-9)]] = False
    stopped = {number for number, flag in zip(numbers, beaten, strict=True) if flag}
    return stopped & set(candidates)


def _behind(values: Vector, costs: Points) -> Vector:
    """How far each trial lies behind the best of those that cost no more: 0 on the front.

    Args:
        values: `[n]`; a trial without a value is behind none, and none is behind it.
        costs: `[n, m - 1]` utilities.
    """
    known = np.isfinite(values)
    no_dearer = (costs[None, :, :] >= costs[:, None, :]).all(axis=2) & known[None, :]
    best = np.where(no_dearer, np.where(known, values, -np.inf)[None, :], -np.inf).max(axis=1)
    return np.where(known, best - np.where(known, values, 0.0), 0.0)


def _ranked(points: Points, numbers: Sequence[int]) -> list[int]:
    """Places in `points`, best first: by layer, then loneliness, then the point itself."""
    ranks = non_dominated_ranks(points)
    lonely = np.empty(len(points))
    for rank in range(int(ranks.max()) + 1):
        layer = np.flatnonzero(ranks == rank)
        lonely[layer] = _loneliness(points[layer])
    keys = (np.asarray(numbers), *(-points.T[::-1]), -lonely, ranks)
    return [int(place) for place in np.lexsort(keys)]


def _loneliness(points: Points) -> Vector:
    """The crowding distance of NSGA-II: infinite at the ends of every objective.

    Args:
        points: `[n, m]` of one layer, no two alike.
    """
    distance = np.zeros(len(points))
    for objective in range(points.shape[1]):
        order = np.lexsort((*points.T, points[:, objective]))
        along = points[order, objective]
        distance[order[[0, -1]]] = np.inf
        if along[-1] > along[0]:
            distance[order[1:-1]] += (along[2:] - along[:-2]) / (along[-1] - along[0])
    return distance
