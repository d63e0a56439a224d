"""What a sparsity rule is: a schema, what it leaves of a configuration, and when that trains.

A rule may act before training (`resolved`: which groups sit where, given the importance map) or
during it (`schedule`: which tensors move at a step). It never changes what a configuration is
called: the trial keeps the configuration as it was proposed, and everything that counts, places
or trains asks the rule what it comes to.
"""

from collections.abc import Mapping
from typing import Protocol

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration
from autopeft.errors import BackboneError, Fault
from autopeft.space.schema import RuleSchema, Scalar


class Rule(Protocol):
    """One sparsity rule; its file registers one instance.

    Attributes:
        schema: Its parameters, the methods that it is for, whether it needs an importance map.
        source: The paper or code that defines it.
    """

    schema: RuleSchema
    source: str

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """The configuration whose groups are built: a pure function of its arguments.

        Raises:
            BackboneError: It needs an importance map that the anatomy lacks.
        """

    def kept(self, counts: Mapping[Key, int], settings: Mapping[str, Scalar]) -> dict[Key, int]:
        """What a deployed adapter stores of the resolved groups' parameters, per (layer, site).

        Args:
            counts: Trainable parameters of the resolved groups.
            settings: The rule's own parameters.
        """


class Plain:
    """What a rule inherits that changes neither groups nor counts."""

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """The configuration itself."""
        return configuration

    def kept(self, counts: Mapping[Key, int], settings: Mapping[str, Scalar]) -> dict[Key, int]:
        """All of them."""
        return dict(counts)


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
        schema, settings = self.of(configuration).schema, dict(configuration.sparsity)
        return schema.measured or any(
            settings.get(each.name, each.default) in each.measured for each in schema.parameters
        )

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._rules)

    def schemas(self) -> dict[str, RuleSchema]:
        """All schemas by name."""
        return {name: rule.schema for name, rule in self._rules.items()}


rules = Rules()
