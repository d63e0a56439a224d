"""Which layers a method occupies: the modes of `layers:`, as a file says them and as bound.

Every bound placement is a bijection between the layer sets that it allows and values of its
dimensions, so that sampling and neighbourhoods are written once, on layer sets.

    all     every layer                     fixed   the layers that the space lists
    bits    any set, one flag per layer     range   a block, from first to last
    last    the top `count` layers          shared  the space's own `layers:`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from autopeft.space.dimension import Dimension
from autopeft.space.schema import Scalar

Layers: TypeAlias = tuple[int, ...]
Mode: TypeAlias = Literal["all", "fixed", "bits", "range", "last", "shared"]

MODES: tuple[Mode, ...] = ("all", "bits", "range", "last", "shared")
"""The modes that a file may name; a list of layers is `fixed`."""

_BLOCK_EDITS = ((1, 1), (-1, -1), (0, 1), (-1, 0), (0, -1), (1, 0))
"""Changes of a block's (first, last): move up or down, grow and shrink at either end."""


@dataclass(frozen=True)
class LayerChoice:
    """The `layers:` of a method or a space, for any backbone.

    Attributes:
        mode: See the module.
        layers: The layers of mode `fixed`, sorted.
    """

    mode: Mode
    layers: Layers = ()

    def bind(self, owner: str, n_layers: int) -> "Placement":
        """The placement on a backbone of `n_layers`; `owner` ("lora." or "") prefixes names."""
        if self.mode == "bits":
            return BitPlacement(
                tuple(Dimension.flag(f"{owner}layers.{layer}") for layer in range(n_layers))
            )
        if self.mode == "range" and n_layers > 1:
            first, last = (
                Dimension(f"{owner}layers.{end}", "integer", range(n_layers))
                for end in ("first", "last")
            )
            return RangePlacement(first, last)
        if self.mode == "last" and n_layers > 1:
            return LastPlacement(
                Dimension(f"{owner}layers.count", "integer", range(1, n_layers + 1))
            )
        return FixedPlacement(self.layers if self.mode == "fixed" else tuple(range(n_layers)))

    def to_dict(self) -> Any:
        """As in YAML."""
        return list(self.layers) if self.mode == "fixed" else {"mode": self.mode}


class Placement(Protocol):
    """The layer sets that one method, or all methods that share them, may occupy."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What the layers are chosen by."""

    @property
    def may_be_empty(self) -> bool:
        """Whether no layer at all is among the choices."""

    @property
    def count(self) -> int:
        """How many non-empty layer sets there are."""

    @property
    def largest(self) -> Layers:
        """The largest layer set."""

    @property
    def smallest(self) -> list[Layers]:
        """The layer sets of the fewest layers."""

    def read(self, raw: Mapping[str, Scalar]) -> Layers:
        """The layers that the values stand for; SpaceError where one is missing."""

    def write(self, layers: Layers) -> dict[str, Scalar]:
        """The values that stand for an allowed layer set."""

    def allows(self, layers: Layers) -> bool:
        """Whether the layer set is among the choices."""

    def nearest(self, layers: Layers) -> Layers:
        """The allowed layer set that differs from any other in the fewest layers."""

    def sample(self, rng: np.random.Generator) -> Layers:
        """A non-empty layer set, uniform in the number of layers."""

    def near(self, layers: Layers, rng: np.random.Generator) -> Layers:
        """A layer set close by, which may be empty or `layers` itself."""


@dataclass(frozen=True)
class FixedPlacement:
    """One layer set and no choice."""

    layers: Layers
    dimensions: tuple[Dimension, ...] = ()
    may_be_empty: bool = False
    count: int = 1

    @property
    def largest(self) -> Layers:
        """The layer set."""
        return self.layers

    @property
    def smallest(self) -> list[Layers]:
        """The layer set alone."""
        return [self.layers]

    def read(self, raw: Mapping[str, Scalar]) -> Layers:
        """The layer set."""
        return self.layers

    def write(self, layers: Layers) -> dict[str, Scalar]:
        """Nothing: there is no choice."""
        return {}

    def allows(self, layers: Layers) -> bool:
        """Whether it is the layer set."""
        return layers == self.layers

    def nearest(self, layers: Layers) -> Layers:
        """The layer set."""
        return self.layers

    def sample(self, rng: np.random.Generator) -> Layers:
        """The layer set."""
        return self.layers

    def near(self, layers: Layers, rng: np.random.Generator) -> Layers:
        """The layer set."""
        return self.layers


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
        return min(blocks, key=lambda block: (_difference(block, layers), len(block)))

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


@dataclass(frozen=True)
class LastPlacement:
    """The top `number` layers: what a short backward pass reaches."""

    number: Dimension
    may_be_empty: bool = False

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The number of layers."""
        return (self.number,)

    @property
    def count(self) -> int:
        """One set per number."""
        return len(self.number.values)

    @property
    def largest(self) -> Layers:
        """Every layer."""
        return tuple(range(self.count))

    @property
    def smallest(self) -> list[Layers]:
        """The top layer."""
        return [(self.count - 1,)]

    def read(self, raw: Mapping[str, Scalar]) -> Layers:
        """The top layers."""
        return self.largest[-int(self.number.read(raw)) :]

    def write(self, layers: Layers) -> dict[str, Scalar]:
        """Their number; nothing for no layers."""
        return {self.number.name: len(layers)} if layers else {}

    def allows(self, layers: Layers) -> bool:
        """Whether they are the top ones."""
        return bool(layers) and layers == self.largest[-len(layers) :]

    def nearest(self, layers: Layers) -> Layers:
        """The top layers closest to them; of equally close ones the fewer."""
        tops = [self.largest[-number:] for number in range(1, self.count + 1)]
        return min(tops, key=lambda top: _difference(top, layers))

    def sample(self, rng: np.random.Generator) -> Layers:
        """Any number, each as often."""
        return self.largest[-int(rng.integers(1, self.count + 1)) :]

    def near(self, layers: Layers, rng: np.random.Generator) -> Layers:
        """One layer more or fewer, or at times another number."""
        return self.largest[-int(self.number.near(len(layers) or 1, rng)) :]


def _difference(some: Layers, others: Layers) -> int:
    """How many layers only one of the two sets has."""
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
