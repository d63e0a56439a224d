"""LISA's switching: `layers` layers train, drawn anew every `interval` steps, all alike.

As the released code (LMFlow) draws them; it trains the layers' full weights, here their methods
train. Nothing is learnt about importance.
"""

from collections.abc import Collection

import numpy as np

from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.sparsity.acting import Acting, Subject
from autopeft.sparsity.base import Plain, rules
from autopeft.sparsity.sampling import weighted_subset


class SwitchedLayers(Acting):
    """Layers that train for `interval` steps."""

    def __init__(self, subject: Subject, *, keep: int, interval: int) -> None:
        self._layers, self._n_layers = subject.layers, subject.n_layers
        self._draws, self._interval = subject.draws, interval
        self._kept = min(keep, len(self._layers))

    def schedule(self, step: int) -> Collection[int] | None:
        """The layers of the step's interval."""
        if not self._layers:
            return None
        generator = self._draws("lisa", step - step % self._interval)
        uniforms = generator.random(self._n_layers)[list(self._layers)]
        chosen = weighted_subset(np.zeros(len(self._layers)), self._kept, uniforms)
        return [self._layers[index] for index in chosen]


class Lisa(Plain):
    """The rule `lisa`."""

    schema = RuleSchema(
        "lisa",
        (
            ParameterSchema("layers", "int", default=2, minimum=1),
            ParameterSchema("interval", "int", default=20, minimum=1),
        ),
    )
    source = "Pan et al. 2024, LISA, arXiv 2403.17919; constants of LMFlow"
    by_layer = True

    def acting(self, subject: Subject) -> Acting:
        """See `SwitchedLayers`."""
        numbers = self.numbers(subject.configuration)
        keep, interval = int(numbers["layers"]), int(numbers["interval"])
        return SwitchedLayers(subject, keep=keep, interval=interval)


rules.register(Lisa())
