"""Sparsity within a space: which rule a point has, and the rule's own parameters.

A rule means something only where the point has a method that it is for; otherwise the point has
the rule `none`. As a method that is off, `none` contributes nothing to the point, however it came
about: that keeps points canonical.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from autopeft.space.dimension import Dimension
from autopeft.space.leaves import Leaf, may_be_measured
from autopeft.space.method import Setting, meaningful, setting_to_dict
from autopeft.space.schema import RuleSchema, Scalar, Shape

NONE = "none"
RULE = "sparsity.rule"


@dataclass(frozen=True)
class RuleSpace:
    """One rule that a space lists, for any backbone.

    Attributes:
        schema: The rule's schema.
        leaves: The leaf of every parameter, each after the one its `when` names.
    """

    schema: RuleSchema
    leaves: tuple[tuple[str, Leaf], ...]

    @property
    def measured(self) -> bool:
        """Whether it may need an importance map."""
        parameters = {parameter.name: parameter for parameter in self.schema.parameters}
        return self.schema.measured or any(
            may_be_measured(parameters[name], leaf) for name, leaf in self.leaves
        )

    def bind(self, shape: Shape) -> "BoundRule":
        """The rule on a backbone."""
        parameters = {parameter.name: parameter for parameter in self.schema.parameters}
        settings = (
            Setting(parameters[name], leaf.bind(f"sparsity.{name}", shape))
            for name, leaf in self.leaves
        )
        return BoundRule(self.schema, tuple(settings))


@dataclass(frozen=True)
class BoundRule:
    """One rule that a bound space lists.

    Attributes:
        schema: The rule's schema.
        settings: Its parameters, each after the one its `when` names.
    """

    schema: RuleSchema
    settings: tuple[Setting, ...]

    @property
    def name(self) -> str:
        """The rule's registered name."""
        return self.schema.name

    def suits(self, methods: Collection[str]) -> bool:
        """Whether it means something beside these methods."""
        if not self.schema.methods:
            return bool(methods)
        return any(method in self.schema.methods for method in methods)


@dataclass(frozen=True)
class BoundSparsity:
    """The rules of a bound space: `none` alone makes none of these.

    Attributes:
        rules: In the order of the space, `none` among them where it is listed.
        choice: The dimension that names the rule; None where there is one rule.
    """

    rules: tuple[BoundRule, ...]
    choice: Dimension | None

    @classmethod
    def of(cls, rules: tuple[RuleSpace, ...], shape: Shape) -> "BoundSparsity":
        """The listed rules on a backbone."""
        names = tuple(rule.schema.name for rule in rules)
        choice = Dimension(RULE, "category", names) if len(names) > 1 else None
        return cls(tuple(rule.bind(shape) for rule in rules), choice)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The rule, then all parameters; one that several rules have is one dimension."""
        settings = (setting.dimension for rule in self.rules for setting in rule.settings)
        parameters = {each.name: each for each in settings if each}
        return (*((self.choice,) if self.choice else ()), *parameters.values())

    @property
    def lists_none(self) -> bool:
        """Whether a point may be without a rule whatever its methods."""
        return any(rule.name == NONE for rule in self.rules)

    def read(
        self, raw: Mapping[str, Scalar], methods: Collection[str]
    ) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
        """What `raw` says beside these methods: the configuration's block, and active values.

        Raises:
            SpaceError: A value that is needed is missing or not legal.
        """
        rule = self._chosen(raw, methods)
        if rule is None:
            return {"rule": NONE}, {}
        block: dict[str, Scalar] = {"rule": rule.name}
        active: dict[str, Scalar] = {self.choice.name: rule.name} if self.choice else {}
        for setting in meaningful(rule.settings, block):
            block[setting.parameter.name] = value = setting.read(raw)
            if setting.dimension:
                active[setting.dimension.name] = value
        return block, active

    def _chosen(self, raw: Mapping[str, Scalar], methods: Collection[str]) -> BoundRule | None:
        """The rule that is in force; None for `none`."""
        suiting = [rule for rule in self.rules if rule.name != NONE and rule.suits(methods)]
        if not suiting or self.choice is None:
            return suiting[0] if suiting else None
        if self.choice.name not in raw and self.absence(methods):
            return None
        name = self.choice.read(raw)
        return next((rule for rule in suiting if rule.name == name), None)

    def absence(self, methods: Collection[str]) -> dict[str, Scalar]:
        """Values with which no rule is in force beside these methods; {} where nothing does."""
        if self.choice is None:
            return {}
        idle = [rule.name for rule in self.rules if rule.name == NONE or not rule.suits(methods)]
        return {self.choice.name: NONE if NONE in idle else idle[0]} if idle else {}

    def sample(self, rng: np.random.Generator) -> dict[str, Scalar]:
        """A value of every dimension."""
        return {dimension.name: dimension.sample(rng) for dimension in self.dimensions}

    def extremes(self, *, largest: bool) -> list[dict[str, Scalar]]:
        """Values of every rule in turn, `none` first, its numbers at the same extreme.

        Names are at their first.
        """
        values = {
            each.name: each.values[0] if each.kind == "category" else each.decode(float(largest))
            for each in self.dimensions
        }
        if self.choice is None:
            return [values]
        names = sorted((rule.name for rule in self.rules), key=lambda name: name != NONE)
        return [values | {self.choice.name: name} for name in names]

    def nearest(self, plain: Mapping[str, Any], methods: Collection[str]) -> dict[str, Scalar]:
        """Values of every dimension nearest to a configuration's `sparsity` block.

        A rule that is not listed becomes none, where that can be.
        """
        given = plain.get("rule", NONE)
        values: dict[str, Scalar] = {}
        for rule in sorted(self.rules, key=lambda rule: rule.name == given):  # its values win
            own = plain if rule.name == given else {}
            for setting in rule.settings:
                if dimension := setting.dimension:
                    wanted = own.get(setting.parameter.name, setting.parameter.default)
                    values[dimension.name] = dimension.closest(wanted)
        if self.choice is not None:
            known = self.choice.values
            instead = self.absence(methods) or {self.choice.name: known[0]}
            values |= {self.choice.name: given} if given in known else instead
        return values

    def to_dict(self) -> dict[str, Any]:
        """A plain description of what is fixed and what may vary."""
        return {
            rule.name: {"methods": sorted(rule.schema.methods)}
            | {"settings": {each.parameter.name: setting_to_dict(each) for each in rule.settings}}
            for rule in self.rules
        }
