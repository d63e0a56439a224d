"""What is compared: every method of `search_spaces/methods.yaml`, at budgets of parameters.

A budget is what LoRA of a rank has at query and value of every layer. A method gets the settings
that the space gives it, in all layers, and of all its legal sizes the one that comes nearest to
the budget by the closed-form count. Where several budgets lead to one configuration (a method
without a size has but one), it is compared at the nearest of them alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TypeAlias

import numpy as np

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.methods import registry
from autopeft.space.binding import MethodSpace
from autopeft.space.dimension import Dimension
from autopeft.space.leaves import FloatRange, Leaf
from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, Scalar
from autopeft.sparsity import rules

SPACE = "methods"

RANKS = (1, 4, 16)
"""Of LoRA, whose parameters are the budgets: 9,216, 36,864 and 147,456 on MiniLM."""

MIDDLE = RANKS[1]
"""Where learning rates are chosen."""

N_RATES = 5
"""Tried of a method's range, both ends among them."""

LORA = "lora"

VARIANTS: Mapping[str, tuple[str, Mapping[str, Scalar]]] = {
    "lora-dora": (LORA, {"dora": True}),
    "surm-circulant": ("surm", {"structure": "circulant"}),
}
"""Settings of a method that are compared by themselves: the method, and what they fix."""

NEAR = math.log(1.1)
"""Settings that are listed later are taken only where they come nearer by more than this."""

SMALL, LARGE, RATIO = 256, 65_536, 1.05
"""Sizes that are tried: all up to the first, then in steps of a ratio up to the second."""


Sized: TypeAlias = tuple[int, int, Group]
"""Parameters, the place among the sizes that are tried, and the group."""


@dataclass(frozen=True)
class Arm:
    """One thing to compare.

    Attributes:
        name: A method's, or one of `VARIANTS`.
        space: The method in the space.
        fixed: Settings that it does not choose.
    """

    name: str
    space: MethodSpace
    fixed: Mapping[str, Scalar]

    @property
    def schema(self) -> MethodSchema:
        """The method's."""
        return self.space.schema

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried, equal steps in the logarithm."""
        ranges = {parameter.name: leaf for parameter, leaf in self.space.training}
        own = ranges["learning_rate"]
        if not isinstance(own, FloatRange):
            raise TypeError(f"{self.schema.name} has no range of learning rates in {SPACE}.yaml")
        return tuple(float(f"{rate:.2g}") for rate in np.geomspace(own.low, own.high, N_RATES))

    # -- sizes ------------------------------------------------------------------------------------

    def at_budgets(self, anatomy: Anatomy, ranks: Sequence[int] = RANKS) -> dict[int, Group]:
        """Its groups, each by the rank of the budget that it is compared at."""
        nearest: dict[Group, int] = {}
        found = self.groups(anatomy, [budget(anatomy, rank) for rank in ranks])
        for rank, group in zip(ranks, found, strict=True):
            rival = nearest.get(group)
            if rival is None or _off(group, anatomy, rank) < _off(group, anatomy, rival):
                nearest[group] = rank
        return {rank: group for group, rank in nearest.items()}

    def groups(self, anatomy: Anatomy, wanted: Sequence[int]) -> list[Group]:
        """The method in all layers, as near to each number of parameters as it comes."""
        sized = [self._sized(anatomy, settings) for settings in self._settings(anatomy)]
        return [_first_near(sized, anatomy, each) for each in wanted]

    def _sized(self, anatomy: Anatomy, settings: Mapping[str, Scalar]) -> list[Sized]:
        """Every size that its places have, with its count."""
        found = []
        for place, size in enumerate(self._sizes(anatomy)):
            group = self._made(anatomy, settings, size)
            with suppress(BackboneError):  # a size that no place has
                found.append((params(group, anatomy), place, group))
        return found

    def _settings(self, anatomy: Anatomy) -> Iterator[dict[str, Scalar]]:
        """Every combination of all settings but the size, in the order of the space."""
        others = {name: leaf for name, leaf in self.space.leaves if name != self.schema.size}
        ways = [
            (self.fixed[name],) if name in self.fixed else _values(leaf, anatomy)
            for name, leaf in others.items()
        ]
        for values in product(*ways):
            yield dict(zip(others, values, strict=True))

    def _sizes(self, anatomy: Anatomy) -> Sequence[Scalar | None]:
        """Sizes to try, those of the space first."""
        if not self.schema.size:
            return (None,)
        listed = _values(dict(self.space.leaves)[self.schema.size], anatomy)
        if self.schema.parameter(self.schema.size).kind == "float":
            return tuple(dict.fromkeys([*listed, *(float(f"{s:.3g}") for s in _steps(1e-4, 1.0))]))
        steps = (round(step) for step in _steps(SMALL, LARGE))
        return tuple(dict.fromkeys([*listed, *range(1, SMALL), *steps]))

    def _made(
        self, anatomy: Anatomy, settings: Mapping[str, Scalar], size: Scalar | None
    ) -> Group:
        values: dict[str, Scalar] = {} if size is None else {self.schema.size: size}
        for parameter in self.schema.parameters:
            when, value = parameter.when, settings.get(parameter.name)
            if value is None or (when and values.get(when[0]) != when[1]):
                continue
            if parameter.name == self.space.per_size:
                value = float(value) * float(size or 1)
            if parameter.is_said(value):
                values[parameter.name] = value
        return Group.of(self.schema.name, range(len(anatomy.layers)), self.space.sites, **values)


def _first_near(every: Sequence[Sequence[Sized]], anatomy: Anatomy, wanted: int) -> Group:
    """The nearest of all, or what the first settings have where that is about as near."""
    best = [each for sized in every if (each := _nearest(sized, anatomy, wanted)) is not None]
    least = min(distance for distance, _ in best)
    return next(group for distance, group in best if distance <= least + NEAR)


def _nearest(sized: Sequence[Sized], anatomy: Anatomy, wanted: int) -> tuple[float, Group] | None:
    """The nearest of the legal sizes, with its distance; of equals the first."""
    ordered = sorted((round(_distance(count, wanted), 6), at, g) for count, at, g in sized)
    return next(((d, group) for d, _, group in ordered if not _faulty(group, anatomy)), None)


def _steps(low: float, high: float) -> Sequence[float]:
    number = math.ceil(math.log(high / low) / math.log(RATIO))
    return [float(step) for step in np.geomspace(low, high, number)]


def _values(leaf: Leaf, anatomy: Anatomy) -> tuple[Scalar, ...]:
    """What a leaf lists, or its one value."""
    bound = leaf.bind("", anatomy.shape(frozenset()))
    return tuple(bound.values) if isinstance(bound, Dimension) else (bound,)


def _distance(count: int, wanted: int) -> float:
    return abs(math.log(max(count, 1) / wanted))


def _off(group: Group, anatomy: Anatomy, rank: int) -> float:
    return _distance(params(group, anatomy), budget(anatomy, rank))


def _faulty(group: Group, anatomy: Anatomy) -> bool:
    return bool(registry[group.method].faults(group, anatomy))


def budget(anatomy: Anatomy, rank: int) -> int:
    """Parameters of LoRA of a rank at query and value of every layer."""
    sites = [
        anatomy.site(layer.index, role) for layer in anatomy.layers for role in ("query", "value")
    ]
    return rank * sum(site.in_features + site.out_features for site in sites)


def params(group: Group, anatomy: Anatomy) -> int:
    """Trainable parameters of a group, closed form; BackboneError where no place allows it."""
    method = registry[group.method]
    return sum(method.count(group, place) for place in method.places(group, anatomy))


def configured(group: Group, rate: float) -> Configuration:
    """A group's configuration at a learning rate."""
    training = {"learning_rate": rate, "weight_decay": 0.0, "warmup_ratio": 0.06}
    return Configuration.of([group], training=training)


@cache
def arms() -> Mapping[str, Arm]:
    """All of them, LoRA first."""
    space = load_space(SPACE, schemas=registry.schemas(), rules=rules.schemas())
    methods = {method.schema.name: method for method in space.parts.methods}
    found = {name: Arm(name, method, {}) for name, method in methods.items()}
    found |= {
        name: Arm(name, methods[method], fixed) for name, (method, fixed) in VARIANTS.items()
    }
    return {LORA: found[LORA], **dict(sorted(found.items()))}
