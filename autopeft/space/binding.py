"""Binds a space to a backbone: widths become sizes, layer modes placements, names are checked."""

from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.space.counting import distinct
from autopeft.space.dimension import Dimension
from autopeft.space.faults import Faults
from autopeft.space.layer_choice import LayerChoice
from autopeft.space.layout import Layout
from autopeft.space.leaves import Choice, Leaf, allowed_values, may_be_measured
from autopeft.space.method import METHOD, NO_METHOD, BoundMethod, Setting, SiteChoice
from autopeft.space.method_names import listed
from autopeft.space.placement import Placement
from autopeft.space.schema import MethodSchema, ParameterSchema, Shape
from autopeft.space.sparsity import BoundSparsity, RuleSpace


@dataclass(frozen=True)
class MethodSpace:
    """A method of a space, for any backbone.

    Attributes:
        schema: The method's schema.
        switched: Whether `present` is a choice.
        leaves: The leaf of every parameter, the size (if any) first, each after the one that its
            `when` names.
        per_size: The parameter that its leaf gives as a multiple of the size, or "".
        sites: Its sites, in the schema's order.
        subset: Whether any non-empty subset of the sites may be chosen.
        layers: Its layers; mode `shared` for the space's own.
        training: The training values that it sets by itself.
    """

    schema: MethodSchema
    switched: bool
    leaves: tuple[tuple[str, Leaf], ...]
    per_size: str
    sites: tuple[str, ...]
    subset: bool
    layers: LayerChoice
    training: tuple[tuple[ParameterSchema, Leaf], ...] = ()

    @property
    def measured(self) -> bool:
        """Whether it may need an importance map: for its layers, or for what it trains there."""
        if self.layers.mode == "importance":
            return True
        leaves = dict(self.leaves)
        own = (parameter for parameter in self.schema.parameters if parameter.name in leaves)
        return any(may_be_measured(parameter, leaves[parameter.name]) for parameter in own)


@dataclass(frozen=True)
class SpaceParts:
    """What a space consists of, for any backbone.

    Attributes:
        methods: Sorted by name, so that their order in the file does not matter.
        layers: What methods with shared layers use.
        training: The training values that it sets, as (schema, leaf).
        rules: The sparsity rules; () where there is none but `none`.
        exclusive: The methods that exclude each other.
    """

    methods: tuple[MethodSpace, ...]
    layers: LayerChoice
    training: tuple[tuple[ParameterSchema, Leaf], ...]
    rules: tuple[RuleSpace, ...] = ()
    exclusive: tuple[str, ...] = ()

    @property
    def choice(self) -> Dimension | None:
        """The dimension that names the method among those that exclude each other."""
        if not self.exclusive:
            return None
        others = len(self.exclusive) < len(self.methods)
        return Dimension(METHOD, "category", (*self.exclusive, *((NO_METHOD,) if others else ())))


def bind(where: str, parts: SpaceParts, shape: Shape) -> Layout:
    """The layout of a space on a backbone.

    Raises:
        SpaceError: The backbone lacks a method, site, layer or width, or no valid configuration
            is left; all faults at once.
    """
    faults = Faults(where)
    methods, layers = parts.methods, parts.layers
    _check_layers("layers", layers, shape, faults)
    for method in methods:
        _check(method, shape, faults)
    faults.raise_if_any()
    bound = tuple(_bound(method, shape, parts) for method in methods)
    for bound_method in bound:
        _check_sizes(bound_method, faults)
    shares = any(bound_method.layers is None for bound_method in bound)
    shared: Placement | None = layers.bind("", shape) if shares else None
    settings = tuple(
        Setting(parameter, leaf.bind(f"training.{parameter.name}", shape))
        for parameter, leaf in parts.training
    )
    sparsity = BoundSparsity.of(parts.rules, shape) if parts.rules else None
    layout = Layout(bound, shared, settings, sparsity, parts.choice)
    if not distinct(layout):
        faults.add("methods", "no valid configuration", "a method with a size and a layer")
    faults.raise_if_any()
    return layout


def _check(method: MethodSpace, shape: Shape, faults: Faults) -> None:
    """Faults where the backbone lacks what the method names."""
    key = f"methods.{method.schema.name}"
    if method.schema.name not in shape.methods:
        allowed = listed(sorted(shape.methods)) or "no method"
        hint = "remove it: this backbone cannot carry it"
        faults.add(key, method.schema.name, allowed, hint)
    legal = [site for site in method.schema.sites if site in shape.roles]
    for site in method.sites:
        if site not in legal:
            faults.add(f"{key}.sites", site, ", ".join(legal), "this backbone has no such site")
    _check_layers(f"{key}.layers", method.layers, shape, faults)
    for name, leaf in method.leaves:
        if isinstance(leaf, Choice) and leaf.of and leaf.of not in shape.dimensions:
            faults.unknown(f"{key}.{name}.of", leaf.of, sorted(shape.dimensions))


def _check_layers(key: str, layers: LayerChoice, shape: Shape, faults: Faults) -> None:
    for layer in layers.layers:
        if layer >= shape.n_layers:
            faults.add(key, layer, f"layers 0 to {shape.n_layers - 1} of this backbone")
    grouping = layers.grouping
    if grouping is not None and grouping.least_layers > shape.n_layers:
        allowed = f"at most {shape.n_layers} groups, as this backbone has so many layers"
        faults.add(f"{key}.pattern", f"{grouping.least_layers} groups", allowed)
    ranked = layers.mode == "importance"
    if ranked and shape.rankings and layers.score not in shape.rankings:
        faults.unknown(f"{key}.score", layers.score, sorted(shape.rankings))


def _check_sizes(method: BoundMethod, faults: Faults) -> None:
    """Shares of a width can leave the legal sizes only once the width is known."""
    if method.size is None:
        return
    parameter, source = method.size.parameter, method.size.source
    sizes = source.values if isinstance(source, Dimension) else (source,)
    if not sizes:
        return  # a range of reals is no share of anything
    low, high = parameter.minimum, parameter.maximum
    for size in (sizes[0] or sizes[min(1, len(sizes) - 1)], sizes[-1]):
        if (low is not None and float(size) < low) or (high is not None and float(size) > high):
            faults.add(f"methods.{method.name}.{parameter.name}", size, allowed_values(parameter))


def _bound(method: MethodSpace, shape: Shape, parts: SpaceParts) -> BoundMethod:
    owner = f"{method.schema.name}."
    leaves: Mapping[str, Leaf] = dict(method.leaves)
    settings = []
    for name, leaf in leaves.items():
        per_size = name == method.per_size
        shown = f"{name}_over_{method.schema.size}" if per_size else name
        source = leaf.bind(f"{owner}{shown}", shape)
        settings.append(Setting(method.schema.parameter(name), source, per_size))
    flags = (
        tuple(Dimension.flag(f"{owner}sites.{site}") for site in method.sites)
        if method.subset
        else ()
    )
    shared = method.layers.mode == "shared"
    ranked = method.layers.of_sites
    flag = Dimension.flag(f"{owner}present") if method.switched else None
    return BoundMethod(
        schema=method.schema,
        present=parts.choice if method.schema.name in parts.exclusive else flag,
        settings=tuple(settings),
        sites=SiteChoice(method.sites, flags, ranked),
        layers=None if shared else method.layers.bind(owner, shape, method.sites),
        training=tuple(
            Setting(parameter, leaf.bind(f"{owner}training.{parameter.name}", shape))
            for parameter, leaf in method.training
        ),
    )
