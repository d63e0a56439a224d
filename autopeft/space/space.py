"""`Space`, which fits any backbone, and `BoundSpace`, which knows its layers and widths."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import SpaceError
from autopeft.space import counting, dialogue, neighbours, projection, sampling
from autopeft.space.binding import SpaceParts, bind
from autopeft.space.dimension import Dimension, Point
from autopeft.space.layout import Layout
from autopeft.space.schema import Scalar, Shape

__all__ = ["BoundSpace", "Dimension", "Point", "Space"]


@dataclass(frozen=True)
class Space:
    """A set of configurations as a file describes it; `load_space` makes it.

    Attributes:
        name: The file's name without suffix, or "inline".
        where: What it is called in errors.
        parts: Its methods, shared layers, training values and sparsity rules.
        description: What it is for, or "".
        source: Where it comes from, or "".
        block: The YAML block as plain data: an inline block that loads as this space.
    """

    name: str
    where: str
    parts: SpaceParts
    description: str = ""
    source: str = ""
    block: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def measured(self) -> bool:
        """Whether a search of it needs an importance map: for placements, units or rules."""
        parts = self.parts
        return (
            parts.layers.mode == "importance"
            or any(method.measured for method in parts.methods)
            or any(rule.measured for rule in parts.rules)
        )

    def bind(self, shape: Shape) -> "BoundSpace":
        """The space on a backbone.

        Args:
            shape: The backbone. Without rankings, layers by importance are a stand-in that is good
                for checks and sizes alone, see `Shape.ranking`; see `measured`.

        Raises:
            SpaceError: The backbone lacks a method, site, layer or width, or no valid
                configuration is left; all faults at once.
        """
        return BoundSpace(self.name, bind(self.where, self.parts, shape))


@dataclass(frozen=True)
class BoundSpace:
    """A space on one backbone: its dimensions, its points, and their encoding.

    A **point** holds the active dimensions only and is canonical: a method that is off (not
    present, size 0, no sites or no layers) contributes nothing, nor do shared layers that no
    method uses, nor a sparsity rule that is for none of its methods. Points are equal exactly
    where their configurations are. A point without any method is not valid. Instances are
    immutable and can be pickled.

    Attributes:
        name: The space's name.
        layout: Its structure.
    """

    name: str
    layout: Layout

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All dimensions: methods by name, shared layers, sparsity, training."""
        return self.layout.dimensions

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of SHA-256 over what it allows; its name does not matter.

        Layers by importance are part of it: on another ranking the same numbers are other
        configurations, so the space is another one.
        """
        text = json.dumps(self.layout.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def cardinality(self) -> int:
        """The raw product over the discrete dimensions."""
        return counting.cardinality(self.layout)

    @cached_property
    def distinct(self) -> int:
        """The number of distinct valid configurations, reals not counted."""
        return counting.distinct(self.layout)

    @property
    def continuous(self) -> int:
        """The number of real dimensions."""
        return sum(dimension.continuous for dimension in self.dimensions)

    # -- points -------------------------------------------------------------------------------

    def canonical(self, raw: Mapping[str, Scalar]) -> Point:
        """The active dimensions of `raw`, normalised; empty methods vanish.

        Raises:
            SpaceError: A name is unknown; an active value is missing or not legal.
        """
        return self.layout.canonical(raw)

    def contains(self, point: Point) -> bool:
        """Whether it is a canonical, valid point of this space."""
        try:
            return self.layout.canonical(point) == dict(point) and bool(self.layout.parts(point))
        except SpaceError:
            return False

    def sample(self, rng: np.random.Generator) -> Point:
        """A valid point, drawn towards small budgets; see `autopeft.space.sampling`."""
        return sampling.sample(self.layout, rng)

    def neighbours(self, point: Point, rng: np.random.Generator, n: int) -> list[Point]:
        """Up to `n` valid points, one deliberate change away, all different."""
        return list(neighbours.neighbours(self.layout, point, rng, n))

    def nearest(self, plain: Mapping[str, Any]) -> Point | None:
        """The point nearest to a configuration in plain form; see `autopeft.space.projection`.

        Of a configuration of this space it is the point that `assignment` came from; None where
        no method of the configuration is in the space.
        """
        return projection.nearest(self.layout, plain)

    def largest(self) -> Point:
        """Every method at its largest size, in all layers and sites.

        It has no sparsity rule, or the first one of a space that always has one; of methods that
        exclude each other, it has the first: see `largest_by_method`.
        """
        return sampling.largest(self.layout)[0][0]

    def largest_by_method(self) -> list[Point]:
        """`largest` with each of the methods that exclude each other in turn."""
        return [points[0] for points in sampling.largest(self.layout)]

    def largest_by_rule(self) -> list[Point]:
        """The same under every sparsity rule in turn, its numbers at their largest."""
        return [point for points in sampling.largest(self.layout) for point in points]

    def smallest(self) -> list[Point]:
        """Candidates for the fewest parameters: each method alone, smallest, at each place.

        Each is there under every sparsity rule that suits it.
        """
        return list(self._smallest)

    @cached_property
    def _smallest(self) -> list[dict[str, Scalar]]:
        """Thousands in a space of all methods, and asked for again and again."""
        return sampling.smallest(self.layout)

    def dialogue(self, choose: dialogue.Choose) -> tuple[Point, dict[str, Scalar]]:
        """The point that answers give, one dimension after another, and the answers.

        Only what means something given the answers so far is asked for; the point may lack a
        method, and is then not valid. See `autopeft.space.dialogue`.
        """
        return dialogue.dialogue(self.layout, choose)

    def answers(self, point: Point) -> dict[str, Scalar]:
        """What a dialogue asks on the way to a point, with the answers."""
        return dialogue.answers(self.layout, point)

    # -- encoding -----------------------------------------------------------------------------

    def encode(self, point: Point) -> NDArray[np.float64]:
        """The point in the unit cube: float64 [d], d = len(dimensions).

        What is off encodes as off (flags and sizes 0); other inactive dimensions as 0.5.
        """
        values = self.layout.explicit(point)
        places = [
            dimension.encode(values[dimension.name]) if dimension.name in values else 0.5
            for dimension in self.dimensions
        ]
        return np.asarray(places, dtype=np.float64)

    def decode(self, vector: NDArray[np.float64]) -> Point:
        """The canonical point of any vector [d]: the inverse of `encode`.

        It lacks a method, and is then not valid, where the vector switches all of them off.
        """
        raw = {
            dimension.name: dimension.decode(u)
            for dimension, u in zip(self.dimensions, vector, strict=True)
        }
        return self.layout.canonical(raw)

    def assignment(self, point: Point) -> dict[str, Any]:
        """The plain form of `Configuration.to_dict()`; `training` holds what the space sets.

        Options that the space sets and are off are among it: the study's own values give way.
        """
        parts = self.layout.parts(point)
        methods = {part.method.name: part.to_dicts() for part in parts}
        training = self.layout.training_values(point)
        for part in parts:
            training |= part.training
        return methods | {"sparsity": self.layout.rule(point), "training": training}

    def to_dict(self) -> dict[str, Any]:
        """A plain description: name, hash, sizes, dimensions and structure."""
        return {
            "name": self.name,
            "hash": self.hash,
            "cardinality": self.cardinality,
            "distinct": self.distinct,
            "continuous": self.continuous,
            "dimensions": [dimension.to_dict() for dimension in self.dimensions],
        } | self.layout.to_dict()
