"""What a sparsity rule is: a schema, what it leaves of a configuration, and when that trains.

A rule may act before training (`resolved`: which groups sit where, given the importance map) or
during it (`acting`: what trains at a step, see `autopeft.sparsity.acting`). It never changes what
a configuration is called: the trial keeps the configuration as it was proposed, and everything
that counts, places or trains asks the rule what it comes to.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration
from autopeft.errors import BackboneError, Fault
from autopeft.space.schema import RuleSchema, Scalar, by_scores
from autopeft.sparsity.acting import Acting, Subject


class Rule(Protocol):
    """One sparsity rule; its file registers one instance.

    Attributes:
        schema: Its parameters, the methods that it is for, whether it needs an importance map.
        source: The paper or code that defines it.
        by_layer: Whether it stops whole layers, so that step counts go by layer.
        by_element: Whether it stops single scalars.
        state_bytes: What it keeps per trained scalar while training.
    """

    schema: RuleSchema
    source: str
    by_layer: bool
    by_element: bool
    state_bytes: int

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """The configuration whose groups are built: a pure function of its arguments.

        Raises:
            BackboneError: It needs an importance map that the anatomy lacks.
        """

    def kept(
        self, counts: Mapping[Key, int], configuration: Configuration, anatomy: Anatomy
    ) -> dict[Key, int]:
        """What a deployed adapter stores of the resolved groups' parameters, per (layer, site).

        The sum is exact. Where training decides on the places, they are shared out evenly.

        Args:
            counts: Trainable parameters of the resolved groups.
            configuration: As it was proposed.
            anatomy: The backbone's.
        """

    def acting(self, subject: Subject) -> Acting | None:
        """What it does to a lane while that trains; None for nothing."""

    def stored(
        self, configuration: Configuration, weights: Mapping[str, Tensor]
    ) -> tuple[Configuration, dict[str, Tensor]]:
        """What a deployed adapter consists of: a pure function, and what it gives stays as it is.

        Args:
            configuration: What was trained.
            weights: Trained tensors by saved name.
        """


class Plain:
    """What a rule inherits that changes neither groups nor counts."""

    schema: RuleSchema
    by_layer = False
    by_element = False
    state_bytes = 0

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """The configuration itself."""
        return configuration

    def kept(
        self, counts: Mapping[Key, int], configuration: Configuration, anatomy: Anatomy
    ) -> dict[Key, int]:
        """All of them."""
        return dict(counts)

    def acting(self, subject: Subject) -> Acting | None:
        """Everything trains at every step."""
        return None

    def stored(
        self, configuration: Configuration, weights: Mapping[str, Tensor]
    ) -> tuple[Configuration, dict[str, Tensor]]:
        """Everything, as it was trained."""
        return configuration, dict(weights)

    def settings(self, configuration: Configuration) -> dict[str, Scalar]:
        """The rule's parameters in a configuration, defaults filled in."""
        given = dict(configuration.sparsity)
        return {
            parameter.name: given.get(parameter.name, parameter.default)  # type: ignore[misc]
            for parameter in self.schema.parameters
        }

    def numbers(self, configuration: Configuration) -> dict[str, float]:
        """The numeric ones of `settings`."""
        return {
            name: float(value)
            for name, value in self.settings(configuration).items()
            if not isinstance(value, str)
        }


class Rules:
    """Rules by name. A duplicate or unknown name raises with the known list."""

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}

    def register(self, rule: Rule) -> Rule:
        """Add a rule under its schema's name."""
        name = rule.schema.name
        if name in self._rules:
            raise ValueError(f"rule {name!r} is registered twice; known: {sorted(self._rules)}")
        self._rules[name] = rule
        return rule

    def __getitem__(self, name: str) -> Rule:
        if name not in self._rules:
            allowed = ", ".join(self._rules)
            raise BackboneError(Fault("configuration", "sparsity.rule", name, allowed))
        return self._rules[name]

    def of(self, configuration: Configuration) -> Rule:
        """The rule of a configuration."""
        return self[str(dict(configuration.sparsity)["rule"])]

    def measured(self, configuration: Configuration) -> bool:
        """Whether a configuration's rule comes to something only with an importance map."""
        schema = self.of(configuration).schema
        return schema.measured or by_scores(schema.parameters, dict(configuration.sparsity))

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._rules)

    def schemas(self) -> dict[str, RuleSchema]:
        """All schemas by name."""
        return {name: rule.schema for name, rule in self._rules.items()}


rules = Rules()
