"""Layers in groups of neighbours, as publications cut a backbone: placements by name.

A **pattern** cuts the layers, from the bottom, into groups whose sizes relate as its weights do; a
placement then names groups, counted from 1 as in the papers.

spindle, uniform,     four groups, most layers in the middle, as many everywhere, ...: the layer
increasing, ...       groupings of PEFT design spaces (Chen et al. 2023, arXiv 2301.01821). The
                      paper orders the sizes (spindle: N1 < N2 = N3 > N4) and finds spindle best
                      with all groups in use and methods that differ between them; its numbers of
                      layers could not be verified, and are here what the weights below make of
                      the depth
spafit-4-9, -4-14     three strata of SPAFIT (Arora and Wang 2024, arXiv 2405.00201): frozen;
                      biases alone; LoRA, and biases elsewhere. Cut behind layers 4 and 9, or 4 and
                      14, of BERT-large's 24; other depths are cut in proportion

Any other cut is written as its weights: `pattern: [1, 2, 3]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from autopeft.space.dimension import Dimension
from autopeft.space.placement import Layers, difference
from autopeft.space.schema import Scalar

Weights: TypeAlias = tuple[int, ...]

PATTERNS: Mapping[str, Weights] = {
    "uniform": (1, 1, 1, 1),
    "increasing": (1, 2, 3, 4),
    "decreasing": (4, 3, 2, 1),
    "spindle": (1, 2, 2, 1),
    "bottleneck": (2, 1, 1, 2),
    "spafit-4-9": (4, 5, 15),
    "spafit-4-14": (4, 10, 10),
}
"""Relative sizes of the groups, the lowest layers first."""

_FAR = 0.2
"""How often a change leads to any other set of layers, in place of one that is near."""


def group_sizes(weights: Weights, n_layers: int) -> tuple[int, ...]:
    """How many layers each group has, by largest remainders, and at least one.

    Of equal remainders the upper group's counts more; a group that would be empty takes a layer
    from the largest one, of equal ones the lowest.

    Args:
        weights: Relative sizes, each at least 1.
        n_layers: At least one per group.
    """
    shares = [Fraction(weight * n_layers, sum(weights)) for weight in weights]
    sizes = [int(share) for share in shares]
    places = range(len(sizes))
    by_remainder = sorted(places, key=lambda i: (shares[i] - sizes[i], i), reverse=True)
    for place in by_remainder[: n_layers - sum(sizes)]:
        sizes[place] += 1
    while 0 in sizes:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return tuple(sizes)


def layers_of_groups(weights: Weights, groups: Sequence[int], n_layers: int) -> Layers:
    """The layers of some groups, counted from 1, sorted."""
    sizes = group_sizes(weights, n_layers)
    firsts = [sum(sizes[:place]) for place in range(len(sizes))]
    spans = [range(firsts[group - 1], firsts[group - 1] + sizes[group - 1]) for group in groups]
    return tuple(sorted({layer for span in spans for layer in span}))


def pattern_name(weights: Weights) -> str:
    """The pattern's name, or its weights where it has none."""
    names = [name for name, known in PATTERNS.items() if known == weights]
    return names[0] if names else "-".join(map(str, weights))


@dataclass(frozen=True)
class Grouping:
    """The patterns and groups that a `layers:` lists, for any backbone.

    Attributes:
        patterns: Weights of the groups.
        groups: Sets of groups, counted from 1; every pattern has all of them.
    """

    patterns: tuple[Weights, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def least_layers(self) -> int:
        """Layers that a backbone must have: one per group."""
        return max(map(len, self.patterns))

    def sets(self, n_layers: int) -> dict[str, Layers]:
        """Every set of layers once, by the first pattern and groups that make it."""
        found: dict[str, Layers] = {}
        for weights in self.patterns:
            for groups in self.groups:
                layers = layers_of_groups(weights, groups, n_layers)
                if layers not in found.values():
                    name = f"{pattern_name(weights)} {'+'.join(map(str, groups))}"
                    found[name] = layers
        return found

    def to_dict(self) -> dict[str, Any]:
        """As in YAML."""
        shown = [pattern_name(each) for each in self.patterns]
        return {
            "pattern": {"choice": shown},
            "groups": {"choice": [list(each) for each in self.groups]},
        }


@dataclass(frozen=True)
class GroupPlacement:
    """One of some sets of layers, each with a name; see `Placement`.

    Attributes:
        name: The dimension, whose values are the names.
        sets: The sets, one per name, all different, none empty.
    """

    name: Dimension
    sets: tuple[Layers, ...]
    may_be_empty: bool = False

    @classmethod
    def of(cls, name: str, sets: Mapping[str, Layers]) -> "GroupPlacement":
        """The placement whose dimension has this name; of two sets or more."""
        return cls(Dimension(name, "category", tuple(sets)), tuple(sets.values()))

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The name of the set."""
        return (self.name,)

    @property
    def count(self) -> int:
        """How many sets there are."""
        return len(self.sets)

    @property
    def largest(self) -> Layers:
        """The set of the most layers, the lowest such one."""
        return max(self.sets, key=len)

    @property
    def smallest(self) -> list[Layers]:
        """The sets of the fewest layers."""
        fewest = min(map(len, self.sets))
        return [layers for layers in self.sets if len(layers) == fewest]

    def read(self, raw: Mapping[str, Scalar]) -> Layers:
        """The set that is named."""
        return self.sets[self.name.values.index(self.name.read(raw))]

    def write(self, layers: Layers) -> dict[str, Scalar]:
        """Its name; nothing for no layers."""
        return {self.name.name: self.name.values[self.sets.index(layers)]} if layers else {}

    def allows(self, layers: Layers) -> bool:
        """Whether it is one of the sets."""
        return layers in self.sets

    def nearest(self, layers: Layers) -> Layers:
        """The set that differs in the fewest layers; of equally close ones the smaller."""
        return min(self.sets, key=lambda own: (difference(own, layers), len(own)))

    def sample(self, rng: np.random.Generator) -> Layers:
        """A number of layers, then a set of so many."""
        sizes = sorted({len(layers) for layers in self.sets})
        size = sizes[int(rng.integers(len(sizes)))]
        return _one_of([layers for layers in self.sets if len(layers) == size], rng)

    def near(self, layers: Layers, rng: np.random.Generator) -> Layers:
        """One of the sets that differ least, or at times another set."""
        others = [own for own in self.sets if own != layers]
        if rng.random() < _FAR:
            return _one_of(others, rng)
        least = min(difference(own, layers) for own in others)
        return _one_of([own for own in others if difference(own, layers) == least], rng)

    def to_dict(self) -> Any:
        """The sets by name."""
        named = zip(self.name.values, self.sets, strict=True)
        return {str(name): list(layers) for name, layers in named}


def _one_of(sets: Sequence[Layers], rng: np.random.Generator) -> Layers:
    return sets[int(rng.integers(len(sets)))]
