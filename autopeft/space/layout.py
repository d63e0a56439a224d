"""The bound space as a structure: its methods, shared layers and training values.

Here alone is decided what is active in a point; counting, chance, neighbourhoods and encoding
build on `parts`, `canonical` and `explicit`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autopeft.errors import Fault, SpaceError
from autopeft.space.dimension import Dimension
from autopeft.space.method import (
    NO_METHOD,
    BoundMethod,
    Part,
    Setting,
    meaningful,
    setting_to_dict,
)
from autopeft.space.placement import Placement
from autopeft.space.schema import Scalar
from autopeft.space.sparsity import NONE, BoundSparsity


@dataclass(frozen=True)
class Layout:
    """What a bound space consists of.

    Attributes:
        methods: By name.
        shared: The placement of the methods without one of their own; None where all have one.
        training: The training values that the space sets.
        sparsity: The sparsity rules; None where there is none but `none`.
        choice: The dimension that names the method among those that exclude each other; None
            where none do.
    """

    methods: tuple[BoundMethod, ...]
    shared: Placement | None
    training: tuple[Setting, ...]
    sparsity: BoundSparsity | None = None
    choice: Dimension | None = None

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All dimensions: methods, shared layers, sparsity, training."""
        training = (setting.dimension for setting in self.training)
        return (
            *((self.choice,) if self.choice else ()),
            *(dimension for method in self.methods for dimension in method.dimensions),
            *(self.shared.dimensions if self.shared else ()),
            *(self.sparsity.dimensions if self.sparsity else ()),
            *(dimension for dimension in training if dimension),
        )

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(dimension.name for dimension in self.dimensions)

    @cached_property
    def exclusive(self) -> tuple[BoundMethod, ...]:
        """The methods that exclude each other."""
        return tuple(method for method in self.methods if method.exclusive)

    def parts(self, raw: Mapping[str, Scalar]) -> list[Part]:
        """The methods that are on in `raw`.

        Raises:
            SpaceError: A value that an active method needs is missing or not legal.
        """
        wanted = [method for method in self.methods if method.wanted(raw)]
        shared = self.shared
        shares = shared is not None and any(method.layers is None for method in wanted)
        shared_layers = shared.read(raw) if shared is not None and shares else ()
        parts = []
        for method in wanted:
            spots = method.layers.read(raw) if method.layers else shared_layers
            if spots:
                parts.append(method.part(raw, spots))
        return parts

    def rule(self, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The sparsity rule of a point with its parameters, as in a configuration."""
        if self.sparsity is None:
            return {"rule": NONE}
        return self.sparsity.read(point, _names(self.parts(point)))[0]

    def canonical(self, raw: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The active dimensions of `raw`, in order, normalised; idempotent.

        Raises:
            SpaceError: A name is unknown; an active value is missing or not legal.
        """
        for name in raw:
            if name not in self._known:
                close = difflib.get_close_matches(name, self._known, n=1)
                hint = f"write {close[0]}" if close else ""
                raise SpaceError(Fault("point", name, "no dimension of the space", "", hint))
        parts = self.parts(raw)
        active = {name: value for part in parts for name, value in part.active.items()}
        shared = next((part.spots for part in parts if part.method.layers is None), ())
        if self.shared and shared:
            active |= self.shared.write(shared)
        if self.sparsity:
            active |= self.sparsity.read(raw, _names(parts))[1]
        values: dict[str, Scalar] = {}
        for setting in meaningful(self.training, values):
            values[setting.parameter.name] = setting.read(raw)
            if dimension := setting.dimension:
                active[dimension.name] = values[setting.parameter.name]
        return active

    def training_values(self, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """What the space says of training values in a point, options that are off included."""
        values: dict[str, Scalar] = {}
        for setting in meaningful(self.training, values):
            values[setting.parameter.name] = setting.read(point)
        return values

    def explicit(self, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The point with what is off said: absences, no rule, unused shared layers as empty."""
        on = {part.method.name: part for part in self.parts(point)}
        values: dict[str, Scalar] = {}
        for method in self.methods:
            if method.name not in on:
                values |= method.absence
        shares = any(part.method.layers is None for part in on.values())
        if self.shared and self.shared.may_be_empty and not shares:
            values |= self.shared.write(())
        if self.choice and not any(part.method.exclusive for part in on.values()):
            values[self.choice.name] = self._unchosen(self.choice)
        if self.sparsity:
            values |= self.sparsity.absence(on.keys())
        return values | dict(point)

    def _unchosen(self, choice: Dimension) -> Scalar:
        """None of the methods that exclude each other, or one that its own values switch off."""
        if NO_METHOD in choice.values:
            return NO_METHOD
        empty = self.shared is not None and self.shared.may_be_empty
        off = (m.name for m in self.exclusive if m.optional or (empty and m.layers is None))
        return next(off, choice.values[0])

    def to_dict(self) -> dict[str, Any]:
        """A plain description; equal for equal spaces."""
        plain: dict[str, Any] = {
            "methods": {method.name: method.to_dict() for method in self.methods},
            "layers": self.shared.to_dict() if self.shared else None,
            "training": {
                setting.parameter.name: setting_to_dict(setting) for setting in self.training
            },
        }
        if self.sparsity:  # without it, spaces keep the hash that they had before there were rules
            plain["sparsity"] = self.sparsity.to_dict()
        return plain


def _names(parts: list[Part]) -> list[str]:
    return [part.method.name for part in parts]
