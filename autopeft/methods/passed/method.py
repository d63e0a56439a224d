"""A type of `peft` that adapts modules: where it sits, what it counts, what it refuses."""

from collections.abc import Sequence

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy, Site
from autopeft.configuration import Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods.base import Kept
from autopeft.methods.inherited import divisors
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.build import Target, ends_of
from autopeft.methods.passed.counts import (
    ModuleShape,
    PassedPlace,
    count_at,
    fixed_at,
    target_of,
)
from autopeft.methods.passed.family import PassedType
from autopeft.methods.passed.starts import Map, start_faults, start_of, takes_out
from autopeft.space.schema import Scalar


class Passed(PassedType):
    """A type that adapts modules, as a method."""

    def carried_by(self, anatomy: Anatomy) -> str:
        """It needs linear maps that it can adapt, or norms."""
        if self.kind.where == "norm":
            return "" if anatomy.norms else "its norms were not recognised in every layer"
        if not anatomy.roles:
            return "it has no linear sites"
        stored = any(site.transposed for layer in anatomy.layers for site in layer.sites.values())
        return (
            "peft's type does not adapt transformers' Conv1D maps"
            if stored and not self.kind.transposed
            else ""
        )

    # -- places -------------------------------------------------------------------------------

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per module, at the first of its sites."""
        shapes, layers = [], []
        for layer in group.layers:
            own = self._modules(group, layer, anatomy)
            shapes += own
            layers += [layer] * len(own)
        return [
            PassedPlace(
                layer, shape.target.role, shape.d_in, shape.d_out, anatomy.head_dim,
                modules=tuple(shapes), index=index,
            )
            for index, (layer, shape) in enumerate(zip(layers, shapes, strict=True))
        ]  # fmt: skip

    def _modules(self, group: Group, layer: int, anatomy: Anatomy) -> list[ModuleShape]:
        """What a group adapts in a layer."""
        if self.kind.where == "norm":
            norms = [anatomy.layers[layer].norms[role] for role in group.sites]
            return [
                ModuleShape(
                    Target(norm.module, norm.role), norm.width, norm.width, norm.bias,
                    "centred" if norm.centred else "plain",
                )
                for norm in norms
            ]  # fmt: skip
        by_module: dict[str, list[Site]] = {}
        for role in (role for role in LINEAR_ROLES if role in group.sites):
            site = anatomy.site(layer, role)
            by_module.setdefault(site.module, []).append(site)
        return [
            ModuleShape(
                Target(name, sites[0].role, sites[0].transposed), sites[0].in_features,
                sum(site.out_features for site in sites), sites[0].bias,
            )
            for name, sites in by_module.items()
        ]  # fmt: skip

    # -- what may be built --------------------------------------------------------------------

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Divisors of the widths that a parameter has to divide."""
        sides = self.kind.divides.get(name)
        if sides is None:
            return None
        widths = [place.d_in if side == "in" else place.d_out for side in sides]
        even = name in self.kind.even
        return tuple(each for each in divisors(*widths) if not (even and each % 2))

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Part of a fused map, sizes that do not divide, and all that `peft` refuses."""
        faults = self._parts(group, anatomy)
        places = self.places(group, anatomy)
        faults += self._ambiguous(group, anatomy) if self.kind.ends else []
        faults += self._run_twice(group, anatomy) if self.kind.name == "POLY" else []
        faults += self._undivided(group, places)
        faults += start_faults(self.name, self.kind, self.complete(group), _maps(places))
        if not faults:
            try:
                shapes = {(p.d_in, p.d_out): p for p in places}.values()
                if not sum(self.count(group, place) for place in (places[0], *shapes)):
                    hint = "peft builds the adapter, and trains nothing of it"
                    given = "settings with which it has no parameters"
                    faults.append(Fault("configuration", self.name, given, "at least 1", hint))
            except BackboneError as error:
                faults += error.faults
        return faults

    def _parts(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        if self.kind.where == "norm":
            return []
        for layer in group.layers:
            for role in group.sites:
                site = anatomy.site(layer, role)
                whole = [
                    each.role
                    for each in anatomy.layers[layer].sites.values()
                    if each.module == site.module
                ]
                if not set(whole) <= set(group.sites):
                    given = f"{role} alone of {site.module}, one map of {', '.join(whole)}"
                    allowed = f"all of {', '.join(whole)}"
                    return [Fault("configuration", f"{self.name}.sites", given, allowed)]
        return []

    def _ambiguous(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Modules whose name, as `peft` is told it, others end with."""
        at = group.layers[0]
        sites = {site.role: site.module for site in anatomy.layers[at].sites.values()}
        for role in group.sites:
            (end,) = ends_of([sites[role]])
            others = [each for each, name in sites.items() if name.endswith(f".{end}")]
            others = [each for each in others if sites[each] != sites[role]]
            if others:
                given = f"{role}, whose name within a layer, {end}, that of {others[0]} ends with"
                hint = "peft shares its tensors among modules whose names end alike"
                allowed = "sites whose names no other's end with"
                return [Fault("configuration", f"{self.name}.sites", given, allowed, hint)]
        return []

    def _run_twice(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Maps that also run on what is no row: `peft` has one task for each row."""
        twice = [role for role in anatomy.run_twice if role in group.sites]
        if not twice:
            return []
        given = f"{', '.join(twice)}, which relative attention runs on positions as well"
        others = ", ".join(role for role in anatomy.roles if role not in anatomy.run_twice)
        return [Fault("configuration", f"{self.name}.sites", given, others)]

    def _undivided(self, group: Group, places: Sequence[Place]) -> list[Fault]:
        faults = []
        parameters = {each.name: each for each in self.schema.parameters}
        for name in self.kind.divides:
            value = group.get(name, parameters[name].default)
            if value == 0:
                continue  # peft: another parameter says it
            for place in {(p.d_in, p.d_out): p for p in places}.values():
                allowed = self.legal(name, place) or ()
                if value not in allowed:
                    at = f"layer {place.layer}, {place.site}, {place.d_in} x {place.d_out}"
                    legal = ", ".join(str(each) for each in allowed) or "no value: other sites"
                    key = f"{self.name}.{name}"
                    faults.append(Fault("configuration", key, f"{value} at {at}", legal))
        return faults

    # -- counts -------------------------------------------------------------------------------

    def count(self, group: Group, place: Place) -> int:
        """As `peft` builds it there: exact, and known before anything is trained."""
        if not isinstance(place, PassedPlace):
            raise TypeError(f"{self.name} was asked of a place that it did not give")
        return count_at(self.kind, group.settings, place).trained

    def training_count(self, group: Group, place: Place) -> int:
        """The same."""
        return self.count(group, place)

    def fixed_count(self, group: Group, place: Place) -> int:
        """What `peft` saves beside what it trains, such as frozen random factors."""
        keeps = self.kind.keeps or start_of(self.kind, dict(group.settings))
        if not (isinstance(place, PassedPlace) and keeps):
            return 0
        return fixed_at(self.kind, group.settings, place)

    def frozen_work(self, group: Group, place: Place) -> int:
        """A product with a matrix of the weight's size, where it makes one."""
        return place.d_in * place.d_out if self.kind.dense else 0

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Input and output once more, and the matrix that it makes, with its gradient.

        And the rest of a weight out of which it took what it starts from.
        """
        size = place.d_in * place.d_out
        own = size if takes_out(self.kind, dict(group.settings)) else 0
        return Kept(place.d_out, weights=2 * size if self.kind.dense else 0, shared=own)


def _maps(places: Sequence[Place]) -> list[Map]:
    return [Map(place.d_in, place.d_out, target_of(place).transposed) for place in places]
