"""What an importance map tells our surrogate of trials that it has not seen.

Trials of a recorded table are split at random; the searcher's own surrogate is fitted to the
final accuracies of some and predicts the others, with and without coverage among its features.
No emulator comes in between: whatever the map knows of these data shows here.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr, t

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.features import Features
from autopeft.searchers.gaussian_process import Prior
from autopeft.searchers.surrogate import fit_quality
from benchmarks.quality.emulator import Table
from benchmarks.quality.problem import task_problem
from benchmarks.quality.traces import without_prior

SEEN = (16, 32, 64, 128)
"""Trials that the surrogate is fitted to."""

SPLITS = 10


def coverage_value(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations and errors with and without coverage.

    Args:
        rows: A recorded table with an importance map.

    Returns:
        One row per number of trials seen: means over the splits of Spearman's correlation and of
        the root mean square error (accuracy), `with` and `without`, and the paired difference of
        the correlations with the half-width of its 95 % interval.
    """
    problem, table = task_problem(rows.attrs, seed=0, initial=8), Table.of(rows)
    accuracies = table.curves[:, len(table.rungs) - 1]
    arms = {"with": problem, "without": without_prior(problem)}
    found = []
    for n in SEEN:
        errors: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for split in range(SPLITS):
            order = np.random.default_rng(split).permutation(len(accuracies))
            for name, each in arms.items():
                errors[name].append(_errors(each, table.configurations, accuracies, order, n))
        means = {
            f"{figure} {name}": float(np.mean([pair[at] for pair in errors[name]]))
            for at, figure in enumerate(("Spearman", "RMSE"))
            for name in arms
        }
        gains = np.array([a - b for (a, _), (b, _) in zip(*errors.values(), strict=True)])
        half = t.ppf(0.975, SPLITS - 1) * gains.std(ddof=1) / np.sqrt(SPLITS)
        found.append({"seen": n, **means, "difference": gains.mean(), "half_width": float(half)})
    return pd.DataFrame(found)


def _errors(
    problem: Problem,
    configurations: Sequence[Configuration],
    accuracies: NDArray[np.float64],
    order: NDArray[np.int64],
    n: int,
) -> tuple[float, float]:
    """Spearman's correlation and the root mean square error on what was not seen."""
    frame = problem.frame[0]
    seen = [
        Observation(int(at), configurations[at], {frame.name: float(accuracies[at])}, rung=1.0)
        for at in order[:n]
    ]
    encoding = Encoding.of(problem, Features(problem), configurations)
    surrogate = fit_quality(problem, encoding, seen, Prior())
    rest = order[n:]
    predicted, _ = surrogate.predict(encoding.rows([configurations[at] for at in rest]))
    scale = frame.best - frame.worst
    true = (accuracies[rest] - frame.worst) / scale
    correlation = float(spearmanr(predicted, true).statistic)
    return correlation, float(np.sqrt(np.mean((predicted - true) ** 2))) * scale
