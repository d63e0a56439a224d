"""The neighbourhood of a point: what one deliberate change makes of it.

An engineer's moves rather than single coordinates: a size one step up, a block of layers moved,
LoRA swapped for an adapter of similar size. Each move edits the explicit form of the point, where
everything that is off says so; values that become meaningful are drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from autopeft.space.dimension import Dimension, Point
from autopeft.space.layout import Layout
from autopeft.space.method import BoundMethod, Part, Setting
from autopeft.space.schema import Scalar

_ATTEMPTS_PER_NEIGHBOUR = 30
"""A move may lead nowhere (no layer above) or to a neighbour that is there already."""

Edit: TypeAlias = dict[str, Scalar]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Start:
    """Where moves start: the point, its methods that are on, and those that are not."""

    layout: Layout
    point: Point
    parts: list[Part]

    @property
    def absent(self) -> list[BoundMethod]:
        on = {part.method.name for part in self.parts}
        return [method for method in self.layout.methods if method.name not in on]


class _Move(Protocol):
    """What a move changes, {} where it does not apply."""

    def __call__(self, start: _Start, rng: np.random.Generator) -> Edit: ...


def neighbours(
    layout: Layout, point: Point, rng: np.random.Generator, n: int
) -> list[dict[str, Scalar]]:
    """Up to `n` valid canonical points, each different from `point` and from each other.

    Fewer come back where the space has hardly more.
    """
    start = _Start(layout, point, layout.parts(point))
    explicit = layout.explicit(point)
    moves = (*_MOVES, *(_RULE_MOVES if layout.sparsity else ()))
    seen = {tuple(sorted(point.items()))}
    found: list[dict[str, Scalar]] = []
    for _ in range(_ATTEMPTS_PER_NEIGHBOUR * n):
        if len(found) == n:
            break
        edit = _one_of(moves, rng)(start, rng)
        if not edit:
            continue
        neighbour = layout.canonical(_completed(layout, explicit | edit, rng))
        key = tuple(sorted(neighbour.items()))
        if key not in seen and layout.parts(neighbour):
            seen.add(key)
            found.append(neighbour)
    return found


def _completed(layout: Layout, raw: Edit, rng: np.random.Generator) -> Edit:
    """`raw` with every dimension that it lacks drawn."""
    missing = (dimension for dimension in layout.dimensions if dimension.name not in raw)
    return raw | {dimension.name: dimension.sample(rng) for dimension in missing}


def _one_of(items: Sequence[_Item], rng: np.random.Generator) -> _Item:
    return items[int(rng.integers(len(items)))]


# -- sizes, settings, training --------------------------------------------------------------------


def _change_size(start: _Start, rng: np.random.Generator) -> Edit:
    part = _one_of(start.parts, rng)
    size = part.method.size_dimension
    if size is None:
        return {}
    value = size.near(part.active[size.name], rng)
    return {size.name: value} if value != 0 else {}


def _change_setting(start: _Start, rng: np.random.Generator) -> Edit:
    part = _one_of(start.parts, rng)
    own = (setting for setting in part.method.settings if setting is not part.method.size)
    settings = (setting.dimension for setting in own)
    return _nudged([d for d in settings if d and d.name in part.active], part.active, rng)


def _change_training(start: _Start, rng: np.random.Generator) -> Edit:
    own = (setting for part in start.parts for setting in part.method.training)
    settings = (setting.dimension for setting in (*start.layout.training, *own))
    return _nudged([d for d in settings if d and d.name in start.point], start.point, rng)


def _nudged(
    dimensions: list[Dimension], values: Mapping[str, Scalar], rng: np.random.Generator
) -> Edit:
    if not dimensions:
        return {}
    dimension = _one_of(dimensions, rng)
    return {dimension.name: dimension.near(values[dimension.name], rng)}


# -- layers and sites -----------------------------------------------------------------------------


def _change_layers(start: _Start, rng: np.random.Generator) -> Edit:
    part = _one_of(start.parts, rng)
    placement = part.method.layers or start.layout.shared
    return placement.write(placement.near(part.spots, rng)) if placement else {}


def _toggle_site(start: _Start, rng: np.random.Generator) -> Edit:
    part = _one_of(start.parts, rng)
    if not part.method.sites.flags:
        return {}
    flag = _one_of(part.method.sites.flags, rng)
    return {flag.name: not part.active[flag.name]}


# -- methods --------------------------------------------------------------------------------------


def _switch_on(start: _Start, rng: np.random.Generator) -> Edit:
    absent = start.absent
    return _entry(start, _one_of(absent, rng), rng) if absent else {}


def _switch_off(start: _Start, rng: np.random.Generator) -> Edit:
    return dict(_one_of(start.parts, rng).method.absence)


def _swap(start: _Start, rng: np.random.Generator) -> Edit:
    """One method for another of similar size, in the same layers where it may sit there."""
    leaving, absent = _one_of(start.parts, rng), start.absent
    if not leaving.method.optional:  # only another of those that exclude it can take its place
        absent = [each for each in absent if each.exclusive and leaving.method.exclusive]
    if not absent:
        return {}
    entering = _one_of(absent, rng)
    edit = dict(leaving.method.absence) | _entry(start, entering, rng)
    size = entering.size_dimension
    if size and _alike(entering.size, leaving.method.size):
        edit[size.name] = size.nearest(leaving.size)
    if entering.layers and entering.layers.allows(leaving.layers):
        edit |= entering.layers.write(leaving.layers)
    return edit


def _alike(one: Setting | None, other: Setting | None) -> bool:
    """Whether two sizes are numbers of one kind."""
    return bool(one and other and one.parameter.kind == other.parameter.kind)


def _entry(start: _Start, method: BoundMethod, rng: np.random.Generator) -> Edit:
    """Values that switch a method on, with shared layers where none are in use."""
    edit = method.sample(rng)
    shared = start.layout.shared
    in_use = any(part.method.layers is None for part in start.parts)
    if method.layers is None and shared and not in_use:
        edit |= shared.write(shared.sample(rng))
    return edit


# -- sparsity -------------------------------------------------------------------------------------


def _change_rule(start: _Start, rng: np.random.Generator) -> Edit:
    choice = start.layout.sparsity.choice if start.layout.sparsity else None
    return {choice.name: _one_of(choice.values, rng)} if choice else {}


def _change_rule_setting(start: _Start, rng: np.random.Generator) -> Edit:
    sparsity = start.layout.sparsity
    own = [each for each in sparsity.dimensions if each != sparsity.choice] if sparsity else []
    return _nudged([each for each in own if each.name in start.point], start.point, rng)


_MOVES: tuple[_Move, ...] = (
    _change_size,
    _change_layers,
    _toggle_site,
    _change_setting,
    _change_training,
    _switch_on,
    _switch_off,
    _swap,
)

_RULE_MOVES: tuple[_Move, ...] = (_change_rule, _change_rule_setting)
"""Beside the others, in spaces with sparsity rules."""
