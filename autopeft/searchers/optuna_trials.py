"""Points of a space as the parameters of Optuna's trials.

A trial has the parameters that a dialogue asks for (`BoundSpace.dialogue`): conditional ones only
where they mean something. Listed numbers are whole numbers from 0, in their order, so that a
sampler can tell near from far; flags and names are categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autopeft.space.dimension import Dimension
from autopeft.space.schema import Scalar


def suggested(trial: Trial, dimension: Dimension) -> Scalar:
    """The value of a dimension that a trial's sampler suggests."""
    name, values = dimension.name, dimension.values
    if dimension.kind == "real":
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    if dimension.kind == "integer":
        return trial.suggest_int(name, int(values[0]), int(values[-1]), log=dimension.log)
    if dimension.kind == "ordered":
        return values[trial.suggest_int(name, 0, len(values) - 1)]
    return values[values.index(trial.suggest_categorical(name, list(values)))]


def distribution(dimension: Dimension) -> BaseDistribution:
    """What `suggested` draws from."""
    values = dimension.values
    if dimension.kind == "real":
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.kind == "integer":
        return IntDistribution(int(values[0]), int(values[-1]), log=dimension.log)
    if dimension.kind == "ordered":
        return IntDistribution(0, len(values) - 1)
    return CategoricalDistribution(list(values))


@dataclass(frozen=True)
class Parameters:
    """A point as a trial has it.

    Attributes:
        params: Values by the dimensions' names, as Optuna has them.
        distributions: What they were drawn from.
    """

    params: Mapping[str, Scalar]
    distributions: Mapping[str, BaseDistribution]

    @classmethod
    def of(
        cls, answers: Mapping[str, Scalar], dimensions: Mapping[str, Dimension]
    ) -> "Parameters":
        """Those of a dialogue's answers."""
        asked = {name: dimensions[name] for name in answers}
        return cls(
            {
                name: each.values.index(answers[name]) if each.kind == "ordered" else answers[name]
                for name, each in asked.items()
            },
            {name: distribution(each) for name, each in asked.items()},
        )

    def told(self, values: Sequence[float], marks: Mapping[str, int]) -> FrozenTrial:
        """A complete trial; `marks` are what its sampler noted of it."""
        return create_trial(
            values=list(values),
            params=dict(self.params),
            distributions=dict(self.distributions),
            system_attrs=dict(marks),
        )

    def running(self) -> FrozenTrial:
        """A trial that is not told yet."""
        return create_trial(
            state=TrialState.RUNNING,
            params=dict(self.params),
            distributions=dict(self.distributions),
        )
