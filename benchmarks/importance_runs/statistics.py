"""Means and intervals over seeds and tasks.

Tasks are these three, seeds stand for all others: a mean is over the tasks' means, and its
interval comes from how seeds differ within tasks, pooled (Student's t, 95 %). Differences are
taken pair by pair, of the same task, seed and budget, which share the order of the batches, the
initial head and the validation rows; where budgets are averaged, that is done within a pair, since
budgets of one seed share all that.
"""

import math
from dataclasses import dataclass

import pandas as pd
from scipy.stats import t as student

PAIR = ["task", "replicate", "rank"]


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval.

    Attributes:
        mean: NaN where there is nothing.
        half: NaN where no task has two seeds.
        n: Values.
    """

    mean: float
    half: float
    n: int

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.mean - self.half > 0.0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.mean + self.half < 0.0


def interval(values: pd.Series) -> Interval:
    """Of values indexed by task and replicate.

    Args:
        values: One per task and replicate, or several tasks with different numbers of them.
    """
    if not len(values):
        return Interval(math.nan, math.nan, 0)
    by_task = values.groupby(level="task")
    counts, freedom = by_task.size(), len(values) - by_task.ngroups
    mean = float(by_task.mean().mean())
    if not freedom:
        return Interval(mean, math.nan, len(values))
    squares = float(((values - by_task.transform("mean")) ** 2).sum())
    error = math.sqrt(squares / freedom * float((1.0 / counts).sum())) / len(counts)
    return Interval(mean, float(student.ppf(0.975, freedom)) * error, len(values))


def qualities(trials: pd.DataFrame, arm: str, rank: int) -> pd.Series:
    """Accuracies of an arm at a budget, by task and replicate."""
    own = trials[(trials["arm"] == arm) & (trials["rank"] == rank)]
    return own.set_index(["task", "replicate"])["accuracy"].astype(float)


def differences(trials: pd.DataFrame, arm: str, other: str, rank: int | None = None) -> pd.Series:
    """Accuracies of an arm minus another's, by task and replicate.

    Args:
        trials: One row per arm, task, replicate and rank.
        arm: The one.
        other: The other.
        rank: A budget; None for the mean over all budgets of the trials, where a pair has all.
    """
    chosen = trials if rank is None else trials[trials["rank"] == rank]
    budgets = chosen["rank"].nunique()
    both = [chosen[chosen["arm"] == name].set_index(PAIR)["accuracy"] for name in (arm, other)]
    pairs = (both[0] - both[1]).dropna().astype(float)
    grouped = pairs.groupby(level=["task", "replicate"])
    return grouped.mean()[grouped.size() == budgets]
