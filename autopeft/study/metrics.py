"""The metrics that a study may name: what each is good for, and which way is better.

The study layer only has to know a metric's name, kind and direction; how it is computed is the
business of `autopeft.training` (qualities) and `autopeft.methods` (known costs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Goal = Literal["max", "min"]
Kind = Literal["quality", "known", "measured", "reached"]

CLASSIFICATION: Final = "sequence-classification"
REGRESSION: Final = "regression"
CAUSAL_LM: Final = "causal-lm"

DENSITY: Final = "activation_density"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: As in `objectives` and `constraints`.
        goal: Its own direction.
        kind: "quality" is measured on validation; "known" is computed in closed form before a
            trial starts; "measured" comes from a solo run of a few steps on the study's device
            before a trial starts (see `autopeft.execution.probe` for what exactly); "reached" is
            a cost that training brings about, measured on validation beside the quality.
        tasks: The tasks for which it can be computed; () = all.
        best: The value of utility 1, or None where the space decides (costs).
        worst_is_constant_predictor: Whether utility 0 is what the constant predictor reaches on
            validation; where False, the cap or the space decides.
        in_bytes: Whether bounds are byte counts ("20MiB").
        needs_choices: Whether it compares candidate answers, which `data.choices` gives.
    """

    name: str
    goal: Goal
    kind: Kind
    tasks: tuple[str, ...] = ()
    best: float | None = None
    worst_is_constant_predictor: bool = False
    in_bytes: bool = False
    needs_choices: bool = False

    def fits(self, task: str) -> bool:
        """Whether it can be computed for a task."""
        return not self.tasks or task in self.tasks


def _quality(
    name: str, goal: Goal, best: float, *tasks: str, needs_choices: bool = False
) -> Metric:
    return Metric(
        name,
        goal,
        "quality",
        tasks,
        best,
        worst_is_constant_predictor=True,
        needs_choices=needs_choices,
    )


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _quality("accuracy", "max", 1.0, CLASSIFICATION),
        # f1 is the second class's F1 where there are two classes, macro-averaged beyond that.
        _quality("f1", "max", 1.0, CLASSIFICATION),
        _quality("matthews", "max", 1.0, CLASSIFICATION),
        _quality("spearman", "max", 1.0, REGRESSION),
        _quality("pearson", "max", 1.0, REGRESSION),
        # Of causal-lm, loss is the mean negative log-likelihood of an answer token, in nats;
        # exact_match asks every token of an answer to be the most likely one.
        _quality("loss", "min", 0.0),
        _quality("token_accuracy", "max", 1.0, CAUSAL_LM),
        _quality("exact_match", "max", 1.0, CAUSAL_LM),
        _quality("choice_accuracy", "max", 1.0, CAUSAL_LM, needs_choices=True),
        Metric("trainable_params", "min", "known"),
        Metric("adapter_bytes", "min", "known", in_bytes=True),
        Metric("flops", "min", "known"),
        Metric("peak_memory_bytes", "min", "measured", in_bytes=True),
        Metric("train_seconds", "min", "measured"),
        Metric("latency_seconds", "min", "measured"),
        Metric(DENSITY, "min", "reached"),
    )
}
"""Every metric by name."""

DEFAULT_QUALITY: Mapping[str, str] = {
    CLASSIFICATION: "accuracy",
    REGRESSION: "spearman",
    CAUSAL_LM: "loss",
}
"""The first objective of a task where the study names none."""

DEFAULT_COST = "trainable_params"
"""The second objective where the study names none."""


def metrics_of(kind: Kind) -> tuple[str, ...]:
    """The names of all metrics of a kind."""
    return tuple(name for name, metric in METRICS.items() if metric.kind == kind)
