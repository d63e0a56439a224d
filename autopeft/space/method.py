"""One method within a bound space: its dimensions, and how their values make a group.

A method is *off* in a point where it is not present, has size 0, no sites or no layers. However it
came to be off, it then contributes nothing to the point: that is what makes points canonical.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from autopeft.space.dimension import Dimension
from autopeft.space.placement import Layers, Placement, Spots, layer_of
from autopeft.space.schema import MethodSchema, Pair, ParameterSchema, Scalar

METHOD = "method"
"""The dimension that names the one method of a space's `one_of`."""

NO_METHOD = "none"
"""Its value where none of them is on."""


@dataclass(frozen=True)
class Setting:
    """One parameter: a fixed value or a dimension.

    Attributes:
        parameter: Its schema.
        source: The value, or the dimension that holds it.
        per_size: Whether the source is a multiple of the method's size (`alpha_over_rank`).
    """

    parameter: ParameterSchema
    source: Dimension | Scalar
    per_size: bool = False

    @property
    def dimension(self) -> Dimension | None:
        """The dimension, where there is one."""
        return self.source if isinstance(self.source, Dimension) else None

    @property
    def largest(self) -> Scalar:
        """The value, or the last one that the dimension may have."""
        return self.source.decode(1.0) if isinstance(self.source, Dimension) else self.source

    def read(self, raw: Mapping[str, Scalar]) -> Scalar:
        """The source's value in `raw`."""
        return self.source.read(raw) if isinstance(self.source, Dimension) else self.source


def meaningful(settings: tuple[Setting, ...], values: Mapping[str, Scalar]) -> Iterator[Setting]:
    """The settings whose condition holds, given the `values` filled in between."""
    for setting in settings:
        when = setting.parameter.when
        if when is None or setting.parameter.means(values.get(when[0])):
            yield setting


def setting_to_dict(setting: Setting) -> Any:
    """The value, or the dimension, as plain data."""
    return _plain(setting.source)


@dataclass(frozen=True)
class SiteChoice:
    """The sites of a method: fixed, or any non-empty subset, one flag per site.

    Attributes:
        sites: In the schema's order; () where the method implies its place.
        flags: One per site, or () where they are fixed.
        ranked: Whether the placement chooses among them, layer by layer.
    """

    sites: tuple[str, ...]
    flags: tuple[Dimension, ...] = ()
    ranked: bool = False

    @property
    def may_be_empty(self) -> bool:
        """Whether no site at all is among the choices."""
        return bool(self.flags)

    @property
    def count(self) -> int:
        """How many non-empty site sets there are."""
        return 2 ** len(self.flags) - 1 if self.flags else 1

    @property
    def smallest(self) -> list[tuple[str, ...]]:
        """Each single site, or the fixed ones."""
        return [(site,) for site in self.sites] if self.flags else [self.sites]

    def read(self, raw: Mapping[str, Scalar]) -> tuple[str, ...]:
        """The chosen sites; a missing flag is off."""
        if not self.flags:
            return self.sites
        return tuple(
            site
            for site, flag in zip(self.sites, self.flags, strict=True)
            if flag.name in raw and flag.read(raw)
        )

    def write(self, sites: tuple[str, ...]) -> dict[str, Scalar]:
        """All flags."""
        chosen = zip(self.sites, self.flags, strict=True) if self.flags else ()
        return {flag.name: site in sites for site, flag in chosen}

    def sample(self, rng: np.random.Generator) -> tuple[str, ...]:
        """A number of sites, then that many."""
        if not self.flags:
            return self.sites
        n = len(self.sites)
        chosen = set(rng.choice(n, size=int(rng.integers(1, n + 1)), replace=False).tolist())
        return tuple(site for index, site in enumerate(self.sites) if index in chosen)


@dataclass(frozen=True)
class Part:
    """A method that is on in a point.

    Attributes:
        method: The method.
        spots: Its layers, or where sites are ranked its (layer, site) pairs; sorted, not empty.
        sites: Its sites; () where the method implies its place.
        values: Every meaningful parameter by name.
        training: The training values that the method sets by itself.
        active: Values of the method's active dimensions, the shared layers' not among them.
    """

    method: "BoundMethod"
    spots: Spots
    sites: tuple[str, ...]
    values: Mapping[str, Scalar]
    training: Mapping[str, Scalar]
    active: Mapping[str, Scalar]

    @property
    def size(self) -> int | float:
        """Rank, bottleneck, length or density; 1 where the method has none."""
        size = self.values.get(self.method.schema.size, 1)
        return float(size) if isinstance(size, float) else int(size)

    @property
    def layers(self) -> Layers:
        """The layers that it occupies, sorted."""
        return tuple(sorted({layer_of(spot) for spot in self.spots}))

    def to_dicts(self) -> list[dict[str, Any]]:
        """The groups as entries of a configuration's plain form: one per set of sites."""
        if not self.method.sites.ranked:
            return [self._group(self.layers, self.sites)]
        alike: dict[tuple[str, ...], list[int]] = {}
        for layer in self.layers:
            sites = tuple(site for site in self.sites if (layer, site) in self.spots)
            alike.setdefault(sites, []).append(layer)
        return [self._group(tuple(layers), sites) for sites, layers in alike.items()]

    def _group(self, layers: Layers, sites: tuple[str, ...]) -> dict[str, Any]:
        plain: dict[str, Any] = {"layers": list(layers)}
        if sites:
            plain["sites"] = list(sites)
        return plain | dict(self.values)


@dataclass(frozen=True)
class BoundMethod:
    """A method of a space, bound to a backbone.

    Attributes:
        schema: The method's schema.
        present: The flag that switches it; the dimension `METHOD` where methods exclude each
            other; None where nothing but its size switches it.
        settings: Its parameters, the size (if any) first, each after the one its `when` names.
        sites: Its sites.
        layers: Its own placement, or None where it uses the space's.
        training: The training values that it sets by itself.
    """

    schema: MethodSchema
    present: Dimension | None
    settings: tuple[Setting, ...]
    sites: SiteChoice
    layers: Placement | None
    training: tuple[Setting, ...] = ()

    @property
    def name(self) -> str:
        """The method's registered name."""
        return self.schema.name

    @property
    def size(self) -> Setting | None:
        """The setting that is its size; None where nothing of it scales."""
        return self.settings[0] if self.schema.size else None

    @property
    def size_dimension(self) -> Dimension | None:
        """The dimension of its size, where there is one."""
        return self.size.dimension if self.size else None

    @property
    def exclusive(self) -> bool:
        """Whether it is one of those that exclude each other."""
        return self.present is not None and self.present.name == METHOD

    @cached_property
    def presence(self) -> dict[str, Scalar]:
        """The value of `present` with which it is on; {} without."""
        on: Scalar = self.name if self.exclusive else True
        return {self.present.name: on} if self.present else {}

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """All its own dimensions, in the order of the point: `METHOD` is the layout's."""
        present = (self.present,) if self.present and not self.exclusive else ()
        layers = self.layers.dimensions if self.layers else ()
        settings = (setting.dimension for setting in (*self.settings, *self.training))
        return (
            *present,
            *(dimension for dimension in settings if dimension),
            *self.sites.flags,
            *layers,
        )

    @cached_property
    def absence(self) -> dict[str, Scalar]:
        """Values that switch it off, its own layers' included; {} where nothing does."""
        values: dict[str, Scalar] = {}
        off: Scalar = NO_METHOD if self.exclusive else False
        if self.present and off in self.present.values:
            values[self.present.name] = off
        if (size := self.size_dimension) and 0 in size.values:
            values[size.name] = 0
        values |= self.sites.write(())
        if self.layers and self.layers.may_be_empty:
            values |= self.layers.write(())
        return values

    @property
    def optional(self) -> bool:
        """Whether it can be off by itself."""
        return bool(self.absence)

    def wanted(self, raw: Mapping[str, Scalar]) -> bool:
        """Whether it is on, its layers not considered."""
        for name, on in self.presence.items():
            if self.present and (name not in raw or self.present.read(raw) != on):
                return False
        size = self.size_dimension
        if size and 0 in size.values and not (size.name in raw and size.read(raw)):
            return False
        return not self.sites.flags or bool(self.sites.read(raw))

    def part(self, raw: Mapping[str, Scalar], spots: Spots) -> Part:
        """The method as it is on in `raw`, on these layers or pairs.

        Raises:
            SpaceError: A value that it needs is missing or not legal.
        """
        sites = self.sites.read(raw)
        if self.sites.ranked:
            used = {site for _, site in spots}
            sites = tuple(site for site in sites if site in used)
        values: dict[str, Scalar] = {}
        active: dict[str, Scalar] = dict(self.presence)
        for setting in meaningful(self.settings, values):
            value = setting.read(raw)
            if setting.dimension:
                active[setting.dimension.name] = value
            if setting.per_size:
                value = float(value) * float(values[self.schema.size])
            if setting.parameter.is_said(value):
                values[setting.parameter.name] = value
        active |= self.sites.write(sites)
        if self.layers:
            active |= self.layers.write(spots)
        training: dict[str, Scalar] = {}
        for setting in meaningful(self.training, training):
            training[setting.parameter.name] = setting.read(raw)
            if dimension := setting.dimension:
                active[dimension.name] = dimension.read(raw)
        return Part(self, spots, sites, values, training, active)

    def spots(self, groups: Sequence[Mapping[str, Any]]) -> tuple[int, ...] | tuple[Pair, ...]:
        """What groups of a configuration's plain form occupy, as its placement counts it."""
        if not self.sites.ranked:
            return layers_of(groups)
        pairs = (
            (int(layer), str(site))
            for entry in groups
            for layer in entry["layers"]
            for site in entry.get("sites", ())
        )
        return tuple(sorted(set(pairs)))

    # -- chance and extremes ------------------------------------------------------------------

    def sample(self, rng: np.random.Generator) -> dict[str, Scalar]:
        """Values of all its dimensions with which it is on."""
        values: dict[str, Scalar] = dict(self.presence)
        for setting in (*self.settings, *self.training):
            if dimension := setting.dimension:
                is_size = setting is self.size
                values[dimension.name] = (
                    dimension.sample_size(rng) if is_size else dimension.sample(rng)
                )
        values |= self.sites.write(self.sites.sample(rng))
        if self.layers:
            values |= self.layers.write(self.layers.sample(rng))
        return values

    def extreme(
        self, *, largest: bool, sites: tuple[str, ...], spots: Spots | None = None
    ) -> dict[str, Scalar]:
        """Values with its largest or smallest size, on these sites and own spots.

        Other numbers are at the same extreme, names at their first, training values in the middle.
        """
        values: dict[str, Scalar] = dict(self.presence)
        values |= {d.name: d.decode(0.5) for each in self.training if (d := each.dimension)}
        for setting in self.settings:
            if dimension := setting.dimension:
                if dimension.kind == "category":
                    values[dimension.name] = dimension.values[0]
                elif not largest and setting is self.size:
                    values[dimension.name] = dimension.nearest(1e-9)
                else:
                    values[dimension.name] = dimension.decode(float(largest))
        values |= self.sites.write(sites)
        if self.layers and spots is not None:
            values |= self.layers.write(spots)
        return values

    def to_dict(self) -> dict[str, Any]:
        """A plain description of what is fixed and what may vary."""
        plain: dict[str, Any] = {
            _source_name(setting): setting_to_dict(setting)
            for setting in self.settings
            if setting.dimension or setting.parameter.is_said(setting.source)
        }
        plain["present"] = _plain(self.present) if self.present else True
        plain["sites"] = (
            {"subset": list(self.sites.sites)} if self.sites.flags else list(self.sites.sites)
        )
        plain["layers"] = self.layers.to_dict() if self.layers else "shared"
        if self.training:  # without, spaces keep the hash that they had before there was any
            plain["training"] = {e.parameter.name: setting_to_dict(e) for e in self.training}
        return plain


def layers_of(groups: Sequence[Mapping[str, Any]]) -> Layers:
    """All layers of groups of a configuration's plain form, sorted."""
    return tuple(sorted({int(layer) for entry in groups for layer in entry["layers"]}))


def _source_name(setting: Setting) -> str:
    return f"{setting.parameter.name} per size" if setting.per_size else setting.parameter.name


def _plain(source: Dimension | Scalar) -> Any:
    return source.to_dict() if isinstance(source, Dimension) else source
