"""The modes of `layers:`, as a file says them, for any backbone.

all         every layer                     fixed   the layers that the space lists
bits        any set, one flag per layer     range   a block, from first to last
last        the top `count` layers          shared  the space's own `layers:`
importance  the `keep` most important layers, or (layer, site) pairs
groups      layers cut into groups by a `pattern`, and some of its `groups`; see `layer_groups`
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from autopeft.space.dimension import Dimension
from autopeft.space.layer_groups import Grouping, GroupPlacement
from autopeft.space.leaves import Choice, Fixed, IntRange, Leaf
from autopeft.space.placement import (
    BitPlacement,
    FixedPlacement,
    Layers,
    Placement,
    RangePlacement,
    RankedPlacement,
    S,
)
from autopeft.space.schema import Shape

Mode: TypeAlias = Literal[
    "all", "fixed", "bits", "range", "last", "shared", "importance", "groups"
]

MODES: tuple[Mode, ...] = ("all", "bits", "range", "last", "shared", "importance", "groups")
"""The modes that a file may name; a list of layers is `fixed`."""

SCORES = (
    "activation",
    "fisher",
    "gradient",
    "magnitude",
    "random",
    "sensitivity",
    "snip",
    "taylor",
)
"""Scores by which layers and sites may be ranked; what a backbone has of them, its map tells."""

DEFAULT_SCORE = "fisher"


@dataclass(frozen=True)
class LayerChoice:
    """The `layers:` of a method or a space, for any backbone.

    Attributes:
        mode: See the module.
        layers: The layers of mode `fixed`, sorted.
        keep: How many, in mode `importance`; None for any number. What exceeds a backbone means
            all that it has.
        score: What is ranked by, in mode `importance`.
        of_sites: Whether (layer, site) pairs are ranked, in mode `importance`.
        grouping: The patterns and groups of mode `groups`.
    """

    mode: Mode
    layers: Layers = ()
    keep: Leaf | None = None
    score: str = DEFAULT_SCORE
    of_sites: bool = False
    grouping: Grouping | None = None

    def bind(self, owner: str, shape: Shape, sites: tuple[str, ...] = ()) -> Placement:
        """The placement on a backbone.

        Args:
            owner: Prefix of the dimensions' names: "lora.", or "" for the space's own layers.
            shape: The backbone.
            sites: Those of the method.
        """
        n_layers = shape.n_layers
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
        if self.mode == "last":
            top_first = tuple(reversed(range(n_layers)))
            return _ranked(f"{owner}layers.count", top_first, None, shape)
        if self.mode == "importance":
            name, ranking = f"{owner}layers.keep", shape.ranking(self.score)
            if self.of_sites:
                pairs = tuple(pair for pair in ranking.sites if pair[1] in sites)
                return _ranked(name, pairs, self.keep, shape)
            return _ranked(name, ranking.layers, self.keep, shape)
        if self.grouping is not None:
            sets = self.grouping.sets(n_layers)
            if len(sets) > 1:
                return GroupPlacement.of(f"{owner}layers.groups", sets)
            return FixedPlacement(next(iter(sets.values())))
        return FixedPlacement(self.layers if self.mode == "fixed" else tuple(range(n_layers)))

    def to_dict(self) -> Any:
        """As in YAML."""
        if self.mode == "fixed":
            return list(self.layers)
        if self.grouping is not None:
            return {"mode": self.mode, **self.grouping.to_dict()}
        if self.mode != "importance":
            return {"mode": self.mode}
        keep = {} if self.keep is None else {"keep": self.keep.to_dict()}
        of = "sites" if self.of_sites else "layers"
        return {"mode": self.mode, **keep, "score": self.score, "of": of}


def _ranked(name: str, order: tuple[S, ...], keep: Leaf | None, shape: Shape) -> Placement:
    """The first `keep` spots of an order; fixed where that is one number."""
    number = _limited(keep, len(order)).bind(name, shape)
    if isinstance(number, Dimension):
        return RankedPlacement(number, order)
    return FixedPlacement(tuple(sorted(order[: int(number)])))


def _limited(keep: Leaf | None, most: int) -> Leaf:
    """How many of `most` spots: any number above counts as all of them."""
    if isinstance(keep, Fixed):
        return Fixed(min(int(keep.value), most))
    if isinstance(keep, Choice):
        return Choice(tuple(min(int(value), most) for value in keep.values))
    if isinstance(keep, IntRange):
        return IntRange(min(keep.low, most), min(keep.high, most), keep.log)
    return IntRange(1, most)
