"""What the measurements at a rung say of quality, and how far they can be trusted.

Every trial of a rung is measured twice on the same examples: by its quality and by its loss. A
share of correct answers is coarse (early in a training it may be that of the constant predictor
for every trial), the loss is not; but the loss may mislead about one trial, and its scale says
nothing of noise. So qualities are sharpened by what the losses let expect, as far as the two
agree; how well they agree, and how well a rung agrees with the rung next to it, is the noise.

Notation: vectors are `[n]` float64, one entry per trial; nan where nothing was measured. Readings
are oriented: higher is better. A noise is the standard deviation of one trial's reading.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

PRIOR_TRIALS = 8.0
"""The noise that the size of the validation set predicts counts as much as this many trials."""

MOST_MOVED = 2.0
"""Standard deviations that the loss may move one trial's quality at most: where the two disagree
by more, the quality is believed (the limited translation of Efron and Morris, 1972)."""

LEAST_RESIDUALS = 4
"""Residuals below which a scatter says nothing."""

MEDIAN_TO_SD = 1.4826
"""Standard deviation of a normal variable over its median absolute value."""

ROUNDING = 1e-12
"""Means of blocks that differ by less are the same: sums of the same values differ by order."""

TIE = 1e-9
"""A step in quality between trials that only their loss tells apart."""


@dataclass(frozen=True)
class Reading:
    """One view of the trials of a rung.

    Attributes:
        values: `[n]`, higher is better; nan where it says nothing.
        noise: Standard deviation of a value, or None where nothing tells it.
    """

    values: Vector
    noise: float | None


@dataclass(frozen=True)
class RungValues:
    """What was measured at one rung, and beside it.

    Attributes:
        quality: `[n]` values of the quality metric, oriented.
        loss: `[n]` validation losses, in the metric's own orientation; nan where not measured.
        quality_beside: `[n]` quality at the rung next to this one, oriented; nan where a trial
            was not measured there or may not be known there yet.
        loss_beside: `[n]` losses there.
        n_examples: Examples of which quality is the share answered rightly, or None where it is
            no such share.
    """

    quality: Vector
    loss: Vector
    quality_beside: Vector
    loss_beside: Vector
    n_examples: int | None


def readings(values: RungValues) -> list[Reading]:
    """The views of a rung, the one that ranks its trials first.

    Quality: a share of correct answers sharpened by the loss, with a noise from both; any other
    metric as it is, with the scatter between rungs. Then the loss, with its scatter, unless it is
    the quality itself.
    """
    losses = Reading(-values.loss, _scatter(-values.loss, -values.loss_beside))
    if values.n_examples is not None:
        return [sharpened(values.quality, values.loss, values.n_examples), losses]
    own = Reading(values.quality, _scatter(values.quality, values.quality_beside))
    same = np.array_equal(values.quality, -values.loss, equal_nan=True)
    return [own] if same else [own, losses]


def sharpened(shares: Vector, losses: Vector, n_examples: int) -> Reading:
    """Shares of correct answers, shrunk towards what the losses let expect.

    An empirical Bayes estimate: the share that a loss goes with is an isotonic regression over
    the trials of the rung; residuals beyond the binomial noise mean that the loss misses
    something, and so much of a residual is kept. Residuals are judged by their median, so that a
    few trials whose loss misleads do not devalue it for all others; those are held back by
    `MOST_MOVED`. Trials on the same examples share much of the binomial noise, which changes no
    comparison: where residuals are smaller than it, they are the noise.

    Args:
        shares: `[n]` in [0, 1], none nan.
        losses: `[n]`; a trial without one keeps its share.
        n_examples: Validation examples.
    """
    known = np.flatnonzero(np.isfinite(losses))
    if len(known) < 2:
        return Reading(shares.copy(), _root_mean(_binomial(shares, n_examples)))
    own = shares[known]
    expected, blocks = isotonic(own, -losses[known])
    variance = _binomial(expected, n_examples)
    freedom = len(known) - blocks
    spread = (MEDIAN_TO_SD * np.median(np.abs(own - expected) / np.sqrt(variance))) ** 2
    ratio = (len(known) * spread + PRIOR_TRIALS) / (freedom + PRIOR_TRIALS)
    kept = max(0.0, 1.0 - 1.0 / ratio)
    limit = MOST_MOVED * np.sqrt(variance)
    values = shares.copy()
    values[known] += np.clip((1.0 - kept) * (expected - own), -limit, limit)
    values[known] += TIE * _places(-losses[known])
    # In units of the binomial variance: the noise, and what the loss may still miss, one standard
    # error above what was seen, so that few trials make for wide margins.
    noise = min(1.0, ratio)
    missed = max(0.0, ratio - 1.0) + ratio * math.sqrt(2.0 / (freedom + PRIOR_TRIALS))
    left = missed / (missed + noise) * noise
    return Reading(values, math.sqrt(left) * _root_mean(variance))


def isotonic(values: Vector, along: Vector) -> tuple[Vector, int]:
    """The rising function of `along` that is nearest to `values` in least squares.

    Pool adjacent violators (Ayer et al. 1955), drawn through the centres of its blocks.

    Args:
        values: `[n]`, n >= 1.
        along: `[n]`; equal entries are ordered by their values.

    Returns:
        The function at every entry, and its number of blocks: the degrees of freedom it took.
    """
    order = np.lexsort((values, along))
    blocks: list[tuple[float, float, float]] = []  # entries, sum of values, sum of along
    for x, y in zip(along[order].tolist(), values[order].tolist(), strict=True):
        blocks.append((1.0, y, x))
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]) - ROUNDING:
            last, before = blocks.pop(), blocks.pop()
            blocks.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    counts, sums, places = np.array(blocks).T
    return np.interp(along, places / counts, sums / counts), len(blocks)


def _mean(block: tuple[float, float, float]) -> float:
    return block[1] / block[0]


def _scatter(here: Vector, beside: Vector) -> float | None:
    """The noise of a reading, from how it scatters about the same reading at the next rung.

    A trial's residual is its distance from the line between its two neighbours in the other
    rung's order, in units of that distance's deviation (Gasser, Sroka and Jennen-Steinmetz 1986);
    half of the variance belongs to either rung. Curves that cross count as noise, as they should.

    Args:
        here: `[n]`, oriented.
        beside: `[n]`, oriented.

    Returns:
        The standard deviation, one standard error above what was seen; None where too few trials
        were measured at both.
    """
    both = np.isfinite(here) & np.isfinite(beside)
    order = np.lexsort((here[both], beside[both]))
    x, y = beside[both][order], here[both][order]
    if len(x) - 2 < LEAST_RESIDUALS:
        return None
    across = x[2:] - x[:-2]
    left = np.where(across > 0.0, (x[2:] - x[1:-1]) / np.where(across > 0.0, across, 1.0), 0.5)
    right = 1.0 - left
    residuals = (left * y[:-2] + right * y[2:] - y[1:-1]) / np.sqrt(left**2 + right**2 + 1.0)
    spread = MEDIAN_TO_SD * float(np.median(np.abs(residuals))) / math.sqrt(2.0)
    return spread * (1.0 + 1.0 / math.sqrt(2.0 * len(residuals)))


def _binomial(shares: Vector, n_examples: int) -> Vector:
    """The variance of shares of `n_examples`, of which one more was right and one more wrong."""
    likely = (np.clip(shares, 0.0, 1.0) * n_examples + 1.0) / (n_examples + 2.0)
    return likely * (1.0 - likely) / n_examples


def _root_mean(variances: Vector) -> float:
    return math.sqrt(float(variances.mean())) if len(variances) else 0.0


def _places(values: Vector) -> Vector:
    """The place of each value from the lowest, 0, 1, ...; equal values share one."""
    return np.unique(values, return_inverse=True)[1].astype(np.float64)
