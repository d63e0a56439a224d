"""Which layers a method occupies, once a space is bound; see `layer_choice` for the modes.

Every bound placement is a bijection between the sets of spots that it allows and values of its
dimensions, so that sampling and neighbourhoods are written once, on sets of spots. A spot is a
layer, or, where single sites are ranked, a (layer, site) pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from autopeft.space.dimension import Dimension
from autopeft.space.schema import Pair, Scalar

Layers: TypeAlias = tuple[int, ...]
Spots: TypeAlias = tuple[Any, ...]
"""Layers or pairs, sorted; which of them, the placement knows."""

S = TypeVar("S", int, Pair)

_BLOCK_EDITS = ((1, 1), (-1, -1), (0, 1), (-1, 0), (0, -1), (1, 0))
"""Changes of a block's (first, last): move up or down, grow and shrink at either end."""


def layer_of(spot: int | Pair) -> int:
    """The layer of a spot."""
    return spot[0] if isinstance(spot, tuple) else spot


class Placement(Protocol):
    """The sets of spots that one method, or all methods that share them, may occupy."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What the spots are chosen by."""

    @property
    def may_be_empty(self) -> bool:
        """Whether no spot at all is among the choices."""

    @property
    def count(self) -> int:
        """How many non-empty sets there are."""

    @property
    def largest(self) -> Spots:
        """The largest set."""

    @property
    def smallest(self) -> list[Any]:
        """The sets of the fewest spots."""

    def read(self, raw: Mapping[str, Scalar]) -> Spots:
        """The spots that the values stand for; SpaceError where one is missing."""

    def write(self, spots: Any) -> dict[str, Scalar]:
        """The values that stand for an allowed set."""

    def allows(self, spots: Any) -> bool:
        """Whether the set is among the choices."""

    def nearest(self, spots: Any) -> Spots:
        """The allowed set that differs from any other in the fewest spots."""

    def sample(self, rng: np.random.Generator) -> Spots:
        """A non-empty set, uniform in the number of spots."""

    def near(self, spots: Any, rng: np.random.Generator) -> Spots:
        """A set close by, which may be empty or `spots` itself."""

    def to_dict(self) -> Any:
        """A plain description; equal for placements that allow the same."""


@dataclass(frozen=True)
class FixedPlacement(Generic[S]):
    """One set and no choice."""

    spots: tuple[S, ...]
    dimensions: tuple[Dimension, ...] = ()
    may_be_empty: bool = False
    count: int = 1

    @property
    def largest(self) -> tuple[S, ...]:
        """The set."""
        return self.spots

    @property
    def smallest(self) -> list[tuple[S, ...]]:
        """The set alone."""
        return [self.spots]

    def read(self, raw: Mapping[str, Scalar]) -> tuple[S, ...]:
        """The set."""
        return self.spots

    def write(self, spots: tuple[S, ...]) -> dict[str, Scalar]:
        """Nothing: there is no choice."""
        return {}

    def allows(self, spots: tuple[S, ...]) -> bool:
        """Whether it is the set."""
        return spots == self.spots

    def nearest(self, spots: tuple[S, ...]) -> tuple[S, ...]:
        """The set."""
        return self.spots

    def sample(self, rng: np.random.Generator) -> tuple[S, ...]:
        """The set."""
        return self.spots

    def near(self, spots: tuple[S, ...], rng: np.random.Generator) -> tuple[S, ...]:
        """The set."""
        return self.spots

    def to_dict(self) -> Any:
        """Its spots."""
        return _plain(self.spots)


@dataclass(frozen=True)
class BitPlacement:
    """Any layer set, one flag per layer."""

    dimensions: tuple[Dimension, ...]
    may_be_empty: bool = True

    @property
    def count(self) -> int:
        """2^n - 1."""
        return int(2 ** len(self.dimensions)) - 1

    @property
    def largest(self) -> Layers:
        """Every layer."""
        return tuple(range(len(self.dimensions)))

    @property
    def smallest(self) -> list[Layers]:
        """Each single layer."""
        return [(layer,) for layer in self.largest]

    def read(self, raw: Mapping[str, Scalar]) -> Layers:
        """The layers whose flag is on; a missing flag is off."""
        return tuple(
            layer
            for layer, flag in enumerate(self.dimensions)
            if flag.name in raw and flag.read(raw)
        )

    def write(self, layers: Layers) -> dict[str, Scalar]:
        """All flags."""
        return {flag.name: layer in layers for layer, flag in enumerate(self.dimensions)}

    def allows(self, layers: Layers) -> bool:
        """Whether all layers exist."""
        return set(layers) <= set(self.largest)

    def nearest(self, layers: Layers) -> Layers:
        """Those that exist."""
        return tuple(layer for layer in self.largest if layer in layers)

    def sample(self, rng: np.random.Generator) -> Layers:
        """A number of layers, then that many: independent flags would rarely give few layers."""
        n = len(self.dimensions)
        chosen = rng.choice(n, size=int(rng.integers(1, n + 1)), replace=False)
        return tuple(sorted(int(layer) for layer in chosen))

    def near(self, layers: Layers, rng: np.random.Generator) -> Layers:
        """One layer toggled, or one block of neighbouring layers moved, grown or shrunk."""
        n = len(self.dimensions)
        if not layers or rng.random() < 0.5:
            return tuple(sorted(set(layers) ^ {int(rng.integers(n))}))
        blocks = _blocks(layers)
        first, last = blocks[int(rng.integers(len(blocks)))]
        rest = set(layers) - set(range(first, last + 1))
        first, last = _edited_block(first, last, n, rng)
        return tuple(sorted(rest | set(range(first, last + 1))))

    def to_dict(self) -> Any:
        """Its flags."""
        return [flag.to_dict() for flag in self.dimensions]


@dataclass(frozen=True)
class RangePlacement:
    """A block of neighbouring layers; `first` and `last` may be given in either order."""

    first: Dimension
    last: Dimension
    may_be_empty: bool = False

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """First and last layer."""
        return self.first, self.last

    @property
    def _n(self) -> int:
        return int(self.first.values[-1]) + 1

    @property
    def count(self) -> int:
        """n (n + 1) / 2."""
        return self._n * (self._n + 1) // 2

    @property
    def largest(self) -> Layers:
        """Every layer."""
        return tuple(range(self._n))

    @property
    def smallest(self) -> list[Layers]:
        """Each single layer."""
        return [(layer,) for layer in self.largest]

    def read(self, raw: Mapping[str, Scalar]) -> Layers:
        """The layers from the lower to the higher end."""
        ends = sorted((int(self.first.read(raw)), int(self.last.read(raw))))
        return tuple(range(ends[0], ends[1] + 1))

    def write(self, layers: Layers) -> dict[str, Scalar]:
        """Both ends; none for no layers."""
        return {self.first.name: layers[0], self.last.name: layers[-1]} if layers else {}

    def allows(self, layers: Layers) -> bool:
        """Whether they are one block within the backbone."""
        return len(_blocks(layers)) == 1 and 0 <= layers[0] <= layers[-1] < self._n

    def nearest(self, layers: Layers) -> Layers:
        """The block closest to them; of equally close ones the smaller, then the higher."""
        ends = range(self._n)
        blocks = [tuple(range(a, b + 1)) for a in reversed(ends) for b in ends if a <= b]
        return min(blocks, key=lambda block: (difference(block, layers), len(block)))

    def sample(self, rng: np.random.Generator) -> Layers:
        """A length, then a place for it."""
        length = int(rng.integers(1, self._n + 1))
        first = int(rng.integers(0, self._n - length + 1))
        return tuple(range(first, first + length))

    def near(self, layers: Layers, rng: np.random.Generator) -> Layers:
        """The block moved, grown or shrunk by a layer, or at times another block."""
        if not layers or rng.random() < 0.2:
            return self.sample(rng)
        first, last = _edited_block(layers[0], layers[-1], self._n, rng)
        return tuple(range(first, last + 1)) or layers

    def to_dict(self) -> Any:
        """Both ends."""
        return [end.to_dict() for end in self.dimensions]


@dataclass(frozen=True)
class RankedPlacement(Generic[S]):
    """The first `number` spots of an order: the top layers, or the most important spots.

    Attributes:
        number: The dimension of how many.
        order: Layers or pairs, the first choice first; at least as many as `number` can be.
    """

    number: Dimension
    order: tuple[S, ...]
    may_be_empty: bool = False

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The number of spots."""
        return (self.number,)

    @property
    def count(self) -> int:
        """One set per number."""
        return len(self.number.values)

    @property
    def largest(self) -> tuple[S, ...]:
        """As many as there can be."""
        return self._first(self.number.values[-1])

    @property
    def smallest(self) -> list[tuple[S, ...]]:
        """As few as there can be."""
        return [self._first(self.number.values[0])]

    def read(self, raw: Mapping[str, Scalar]) -> tuple[S, ...]:
        """The first of the order."""
        return self._first(self.number.read(raw))

    def write(self, spots: tuple[S, ...]) -> dict[str, Scalar]:
        """Their number; nothing for none."""
        return {self.number.name: len(spots)} if spots else {}

    def allows(self, spots: tuple[S, ...]) -> bool:
        """Whether they are the first of the order, and of a number that may be."""
        return len(spots) in self.number.values and spots == self._first(len(spots))

    def nearest(self, spots: tuple[S, ...]) -> tuple[S, ...]:
        """The first ones closest to them; of equally close sets the smaller."""
        sets = [self._first(number) for number in self.number.values]
        return min(sets, key=lambda first: difference(first, spots))

    def sample(self, rng: np.random.Generator) -> tuple[S, ...]:
        """Any number, each as often."""
        return self._first(self.number.values[int(rng.integers(self.count))])

    def near(self, spots: tuple[S, ...], rng: np.random.Generator) -> tuple[S, ...]:
        """One spot more or fewer, or at times another number."""
        number = len(spots) or self.number.values[0]
        return self._first(self.number.near(number, rng))

    def _first(self, number: Scalar) -> tuple[S, ...]:
        return tuple(sorted(self.order[: int(number)]))

    def to_dict(self) -> Any:
        """The number, and the order where it is not simply the top layers first."""
        number = [self.number.to_dict()]
        if self.order == tuple(reversed(range(len(self.order)))):
            return number
        return {"number": number, "order": _plain(self.order)}


def _plain(spots: Spots) -> list[Any]:
    """Spots as JSON holds them."""
    return [list(spot) if isinstance(spot, tuple) else spot for spot in spots]


def difference(some: Spots, others: Spots) -> int:
    """How many spots only one of the two sets has."""
    return len(set(some) ^ set(others))


def _blocks(layers: Layers) -> list[tuple[int, int]]:
    """The maximal runs of neighbouring layers, as (first, last)."""
    blocks: list[tuple[int, int]] = []
    for layer in layers:
        if blocks and blocks[-1][1] == layer - 1:
            blocks[-1] = (blocks[-1][0], layer)
        else:
            blocks.append((layer, layer))
    return blocks


def _edited_block(first: int, last: int, n: int, rng: np.random.Generator) -> tuple[int, int]:
    """A block moved, grown or shrunk by one layer, kept within 0..n-1; may come out empty."""
    lower, upper = _BLOCK_EDITS[int(rng.integers(len(_BLOCK_EDITS)))]
    if first + lower < 0 or last + upper >= n:
        return first, last
    return first + lower, last + upper
