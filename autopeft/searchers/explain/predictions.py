"""What the searcher expected of its proposals beside what was measured.

A prediction is what the surrogate believed when it proposed a trial, kept in the trial's details;
so it cannot have been fitted to what it is compared with. Only trials that completed the full
budget count: a stopped trial's value at a rung is not what was predicted. Those that were stopped
were the worse ones, so measured values lie rather above what an unbiased prediction would give.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.study.records import TrialRecord, TrialState

NORMAL = {1: 0.68, 2: 0.95}
"""Share of normally distributed values within so many standard deviations."""


@dataclass(frozen=True)
class Prediction:
    """One metric of one trial, predicted and measured, in the metric's unit.

    Attributes:
        trial: The trial's number.
        mean: What was expected.
        sd: The standard deviation of the belief, or None where none was kept.
        measured: What came, at the full budget.
    """

    trial: int
    mean: float
    sd: float | None
    measured: float

    @property
    def error(self) -> float:
        """Measured less predicted."""
        return self.measured - self.mean

    def within(self, sds: float) -> bool:
        """Whether it came within so many standard deviations."""
        return self.sd is not None and abs(self.error) <= sds * self.sd


@dataclass(frozen=True)
class Predictions:
    """All predictions of one metric.

    Attributes:
        metric: Its name.
        proposed: Trials that it was predicted for, ended or not.
        pairs: Those that completed the full budget, by number.
    """

    metric: str
    proposed: int
    pairs: tuple[Prediction, ...]

    def share_within(self, sds: int) -> float | None:
        """The share of measured values within so many standard deviations; None without any."""
        with_sd = [pair for pair in self.pairs if pair.sd is not None]
        return sum(pair.within(sds) for pair in with_sd) / len(with_sd) if with_sd else None

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, between predicted and measured; None below three trials."""
        if len(self.pairs) < 3:
            return None
        from autopeft.searchers.explain.importances import rank_correlation  # imports NumPy

        pairs = [(pair.mean, pair.measured) for pair in self.pairs]
        return rank_correlation(*zip(*pairs, strict=True))

    @property
    def rmse(self) -> float | None:
        """The root of the mean squared error, in the metric's unit."""
        if not self.pairs:
            return None
        return math.sqrt(sum(pair.error**2 for pair in self.pairs) / len(self.pairs))

    @property
    def bias(self) -> float | None:
        """The mean of measured less predicted, in the metric's unit."""
        return sum(pair.error for pair in self.pairs) / len(self.pairs) if self.pairs else None

    def sentences(self) -> list[str]:
        """What there is, and how far it can be trusted."""
        metric = self.metric.replace("_", " ")
        plural = "" if self.proposed == 1 else "s"
        counted = f"{metric} was predicted for {self.proposed} trial{plural}; "
        if not self.pairs:
            return [counted + "none of them has completed the full budget"]
        said = [counted + f"{len(self.pairs)} of them completed the full budget and count"]
        shares = {sds: self.share_within(sds) for sds in NORMAL}
        within = [
            f"{share:.0%} within {sds} sd ({NORMAL[sds]:.0%} would be)"
            for sds, share in shares.items()
            if share is not None
        ]
        if within:
            said.append(f"measured values: {', '.join(within)}")
        said.append(f"RMSE {self.rmse:.4g}, measured less predicted on average {self.bias:+.4g}")
        said.append(
            "rank correlation unknown: it takes three trials that differ"
            if self.rank_correlation is None
            else f"rank correlation {self.rank_correlation:.2f} between predicted and measured"
        )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Their JSON shape."""
        return {
            "metric": self.metric,
            "proposed": self.proposed,
            "completed": len(self.pairs),
            "within_1_sd": self.share_within(1),
            "within_2_sd": self.share_within(2),
            "rank_correlation": self.rank_correlation,
            "rmse": self.rmse,
            "bias": self.bias,
            "pairs": [
                {"trial": p.trial, "mean": p.mean, "sd": p.sd, "measured": p.measured}
                for p in self.pairs
            ],
        }


def predictions(trials: Sequence[TrialRecord]) -> list[Predictions]:
    """The predictions of a study's trials by metric, in the order in which they came up."""
    found: dict[str, list[tuple[TrialRecord, float, float | None]]] = {}
    for trial in trials:
        for metric, (mean, sd) in predicted(trial).items():
            found.setdefault(metric, []).append((trial, mean, sd))
    return [Predictions(metric, len(rows), _pairs(metric, rows)) for metric, rows in found.items()]


def _pairs(
    metric: str, rows: Sequence[tuple[TrialRecord, float, float | None]]
) -> tuple[Prediction, ...]:
    return tuple(
        Prediction(trial.number, mean, sd, measured)
        for trial, mean, sd in sorted(rows, key=lambda row: row[0].number)
        if trial.state is TrialState.COMPLETED
        and trial.rung == 1.0
        and (measured := trial.objectives.get(metric)) is not None
    )


def predicted(trial: TrialRecord) -> dict[str, tuple[float, float | None]]:
    """Mean and standard deviation by metric, as far as they were kept with the trial."""
    beliefs = trial.details.get("predicted")
    if not isinstance(beliefs, Mapping):
        return {}
    return {
        str(metric): (mean, as_number(belief.get("sd")))
        for metric, belief in beliefs.items()
        if isinstance(belief, Mapping) and (mean := as_number(belief.get("mean"))) is not None
    }


def as_number(value: object) -> float | None:
    """A finite number from plain JSON that others may have written; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
