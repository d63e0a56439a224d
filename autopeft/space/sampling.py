"""Points by chance and at the extremes.

Independent draws per dimension would nearly always use every method in half of the layers: in the
published AutoPEFT space, 62 % of such points exceed 1.4 % of BERT-base's parameters. Here few
methods are likelier than many, the number of layers and sites is drawn before they are, and sizes
are log-uniform, which spreads points evenly over the logarithm of trainable parameters.
"""

import itertools

import numpy as np

from autopeft.space.layout import Layout
from autopeft.space.method import NO_METHOD, BoundMethod
from autopeft.space.placement import Spots, layer_of
from autopeft.space.schema import Scalar


def sample(layout: Layout, rng: np.random.Generator) -> dict[str, Scalar]:
    """A canonical valid point."""
    chosen = _chosen_methods(layout, rng)
    raw = _absences(layout)
    for method in layout.methods:
        raw |= method.sample(rng) if method.name in chosen else {}
    if layout.shared:
        raw |= layout.shared.write(layout.shared.sample(rng))
    if layout.sparsity:
        raw |= layout.sparsity.sample(rng)
    for setting in layout.training:
        if dimension := setting.dimension:
            raw[dimension.name] = dimension.sample(rng)
    return layout.canonical(raw)


def _absences(layout: Layout) -> dict[str, Scalar]:
    """Values that switch off all methods that can be."""
    return {name: value for each in layout.methods for name, value in each.absence.items()}


def _chosen_methods(layout: Layout, rng: np.random.Generator) -> set[str]:
    """The required methods and some optional ones; k methods with weight 1 / k.

    Those that exclude each other count as one, which is then any of them.
    """
    alone = [method for method in layout.methods if not method.exclusive]
    required = [[method.name] for method in alone if not method.optional]
    optional = [[method.name] for method in alone if method.optional]
    if layout.choice:
        either = [method.name for method in layout.exclusive]
        (optional if NO_METHOD in layout.choice.values else required).append(either)
    counts = [k for k in range(len(optional) + 1) if k or required]
    weights = np.array([1.0 / max(k + len(required), 1) for k in counts])
    k = counts[int(rng.choice(len(counts), p=weights / weights.sum()))]
    picked = rng.choice(len(optional), size=k, replace=False).tolist() if k else []
    chosen = [*required, *(optional[index] for index in picked)]
    return {each[int(rng.integers(len(each)))] if len(each) > 1 else each[0] for each in chosen}


def largest(layout: Layout) -> list[list[dict[str, Scalar]]]:
    """Every method at its largest size, in all layers and sites.

    Returns:
        With each of the methods that exclude each other in turn, under every rule in turn.
    """
    raw: dict[str, Scalar] = {}
    for method in layout.methods:
        spots = method.layers.largest if method.layers else None
        raw |= method.extreme(largest=True, sites=method.sites.sites, spots=spots)
    if layout.shared:
        raw |= layout.shared.write(layout.shared.largest)
    turns: list[dict[str, Scalar]] = [each.presence for each in layout.exclusive] or [{}]
    return [_by_rule(layout, raw | turn, largest=True) for turn in turns]


def smallest(layout: Layout) -> list[dict[str, Scalar]]:
    """Candidates for the configuration of the fewest parameters.

    As few methods as possible, each at its smallest size and on one site, on one layer: every such
    method, site and layer, since widths may differ between them.
    """
    points: dict[frozenset[tuple[str, Scalar]], dict[str, Scalar]] = {}
    for methods in _fewest_methods(layout):
        for layer in _layers(layout):
            for sites in itertools.product(*(method.sites.smallest for method in methods)):
                for point in _smallest_at(layout, methods, sites, layer):
                    points.setdefault(frozenset(point.items()), point)
    return list(points.values())


def _fewest_methods(layout: Layout) -> list[list[BoundMethod]]:
    """The minimal sets of methods that can be on with all others off."""
    either = layout.exclusive
    if either and len(either) == len(layout.methods):
        return [[method] for method in either]
    own = [method for method in layout.methods if method.layers is not None]
    shared = [method for method in layout.methods if method.layers is None]
    needed_own = [method for method in own if not method.optional]
    needed_shared = [method for method in shared if not method.optional]
    may_be_empty = layout.shared is not None and layout.shared.may_be_empty
    if needed_shared and not may_be_empty:
        return [needed_own + needed_shared]
    if needed_own:
        return [needed_own]
    alone = [[method] for method in own]
    return alone + ([needed_shared] if needed_shared else [[method] for method in shared])


def _layers(layout: Layout) -> range:
    """Every layer that some smallest placement can start from."""
    placements = [method.layers for method in layout.methods if method.layers]
    placements += [layout.shared] if layout.shared else []
    highest = (layer_of(spots[-1]) for placement in placements for spots in placement.smallest)
    return range(max(highest) + 1)


def _smallest_at(
    layout: Layout, methods: list[BoundMethod], sites: tuple[tuple[str, ...], ...], layer: int
) -> list[dict[str, Scalar]]:
    raw = _absences(layout)
    for method in methods:
        own = _closest(method.layers.smallest, layer) if method.layers else None
        raw |= method.extreme(largest=False, sites=sites[methods.index(method)], spots=own)
    if layout.shared:
        on = any(method.layers is None for method in methods)
        raw |= layout.shared.write(_closest(layout.shared.smallest, layer) if on else ())
    return _by_rule(layout, raw, largest=False)


def _by_rule(layout: Layout, raw: dict[str, Scalar], *, largest: bool) -> list[dict[str, Scalar]]:
    """The points of these methods under every rule, all different."""
    raw = raw | _training(layout)
    ways = layout.sparsity.extremes(largest=largest) if layout.sparsity else [{}]
    points: list[dict[str, Scalar]] = []
    for rule in ways:
        point = layout.canonical(raw | rule)
        if point not in points:
            points.append(point)
    return points


def _closest(choices: list[Spots], layer: int) -> Spots:
    """The choice that starts at `layer`, or the one nearest to it."""
    return min(choices, key=lambda spots: abs(layer_of(spots[0]) - layer))


def _training(layout: Layout) -> dict[str, Scalar]:
    """The middle of every training dimension: sizes do not depend on it."""
    dimensions = (setting.dimension for setting in layout.training)
    return {dimension.name: dimension.decode(0.5) for dimension in dimensions if dimension}
