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
from autopeft.space.method import BoundMethod, Part, Setting, placement_to_dict
from autopeft.space.placement import Placement
from autopeft.space.schema import Scalar


@dataclass(frozen=True)
class Layout:
    """What a bound space consists of.

    Attributes:
        methods: By name.
        shared: The placement of the methods without one of their own; None where all have one.
        training: The training values that the space sets.
    """

    methods: tuple[BoundMethod, ...]
    shared: Placement | None
    training: tuple[Setting, ...]

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All dimensions: methods, shared layers, training."""
        training = (setting.dimension for setting in self.training)
        return (
            *(dimension for method in self.methods for dimension in method.dimensions),
            *(self.shared.dimensions if self.shared else ()),
            *(dimension for dimension in training if dimension),
        )

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(dimension.name for dimension in self.dimensions)

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
            layers = method.layers.read(raw) if method.layers else shared_layers
            if layers:
                parts.append(method.part(raw, layers))
        return parts

    def canonical(self, raw: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The active dimensions of `raw`, in order, normalised; idempotent.

        Raises:
            SpaceError: A name is unknown; an active value is missing or not legal.
        """
        for name in raw:
            if name not in self._names:
                close = difflib.get_close_matches(name, self._names, n=1)
                hint = f"write {close[0]}" if close else ""
                raise SpaceError(Fault("point", name, "no dimension of the space", "", hint))
        parts = self.parts(raw)
        active = {name: value for part in parts for name, value in part.active.items()}
        shared = next((part.layers for part in parts if part.method.layers is None), ())
        if self.shared and shared:
            active |= self.shared.write(shared)
        for setting in self.training:
            if dimension := setting.dimension:
                active[dimension.name] = dimension.read(raw)
        return active

    def explicit(self, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The point with what is off said: absences and, where unused, empty shared layers."""
        on = {part.method.name: part for part in self.parts(point)}
        values: dict[str, Scalar] = {}
        for method in self.methods:
            if method.name not in on:
                values |= method.absence
        shares = any(part.method.layers is None for part in on.values())
        if self.shared and self.shared.may_be_empty and not shares:
            values |= self.shared.write(())
        return values | dict(point)

    def to_dict(self) -> dict[str, Any]:
        """A plain description; equal for equal spaces."""
        return {
            "methods": {method.name: method.to_dict() for method in self.methods},
            "layers": placement_to_dict(self.shared) if self.shared else None,
            "training": {
                setting.parameter.name: (
                    setting.dimension.to_dict() if setting.dimension else setting.source
                )
                for setting in self.training
            },
        }
