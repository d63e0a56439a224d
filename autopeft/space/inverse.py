"""From a configuration back to the point that stands for it: the inverse of `assignment`.

Studies keep configurations, whatever proposed them. Where one lies in the space, its point is
read off exactly; where it does not (a baseline, another learning rate), there is none.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from autopeft.errors import SpaceError
from autopeft.space.dimension import Dimension
from autopeft.space.layout import Layout
from autopeft.space.method import BoundMethod, Setting, SiteChoice
from autopeft.space.placement import Layers, Placement
from autopeft.space.schema import Scalar

_TOLERANCE = 1e-9
"""Relative difference of equal numbers: a configuration keeps 12 digits."""

Values: TypeAlias = dict[str, Scalar]


class _OutsideError(Exception):
    """The configuration does not lie in the space."""


def point_of(layout: Layout, plain: Mapping[str, Any]) -> Values | None:
    """The canonical point whose assignment a configuration's plain form is, or None.

    Training values that the space does not set are the study's, and not looked at.
    """
    try:
        groups = _groups(plain)
        raw = _shared(layout, groups)
        for method in layout.methods:
            group = groups.get(method.name)
            raw |= method.absence if group is None else _method(method, group)
        raw |= _settings(layout.training, plain["training"])
        point = layout.canonical(raw)
    except (_OutsideError, SpaceError):  # SpaceError: what is absent cannot be left out here
        return None
    on = {part.method.name: part.values.keys() for part in layout.parts(point)}
    given = {name: group.keys() - {"layers", "sites"} for name, group in groups.items()}
    return point if on and on == given else None


def _groups(plain: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The one group of each method."""
    methods = {name: plain[name] for name in plain if name not in ("sparsity", "training")}
    sparse = dict(plain.get("sparsity", {"rule": "none"})) != {"rule": "none"}
    if sparse or any(len(groups) != 1 for groups in methods.values()):
        raise _OutsideError
    return {name: groups[0] for name, groups in methods.items()}


def _method(method: BoundMethod, group: Mapping[str, Any]) -> Values:
    """The values that make this group, shared layers left out."""
    values: Values = {method.present.name: True} if method.present else {}
    values |= _sites(method.sites, group.get("sites", ()))
    if method.layers:
        values |= _layers(method.layers, tuple(group["layers"]))
    return values | _settings(method.settings, group, size=float(group[method.schema.size]))


def _sites(choice: SiteChoice, given: Iterable[str]) -> Values:
    sites = tuple(given)
    wrong = set(sites) - set(choice.sites) if choice.flags else set(sites) ^ set(choice.sites)
    if wrong:
        raise _OutsideError
    return choice.write(sites)


def _layers(placement: Placement, layers: Layers) -> Values:
    if not placement.allows(layers):
        raise _OutsideError
    return placement.write(layers)


def _shared(layout: Layout, groups: Mapping[str, Mapping[str, Any]]) -> Values:
    """The values of the layers that methods share: the same for all of them."""
    if layout.shared is None:
        return {}
    sharing = {method.name for method in layout.methods if method.layers is None}
    chosen = {tuple(groups[name]["layers"]) for name in sharing & groups.keys()}
    if not chosen:
        return layout.shared.write(()) if layout.shared.may_be_empty else {}
    if len(chosen) > 1:
        raise _OutsideError
    return _layers(layout.shared, chosen.pop())


def _settings(
    settings: Iterable[Setting], given: Mapping[str, Scalar], size: float = 1.0
) -> Values:
    """The values of the dimensions that stand for what is given."""
    values: Values = {}
    for setting in settings:
        if setting.parameter.name in given:
            factor = size if setting.per_size else 1.0
            value = _source_value(setting, given[setting.parameter.name], factor)
            if dimension := setting.dimension:
                values[dimension.name] = value
    return values


def _source_value(setting: Setting, value: Scalar, factor: float) -> Scalar:
    """The legal value of a setting's source that times `factor` is `value`."""
    source = setting.source
    if isinstance(source, Dimension) and source.continuous:
        return float(value) / factor
    legal = source.values if isinstance(source, Dimension) else (source,)
    for each in legal:
        if _same(each, value, factor):
            return each
    raise _OutsideError


def _same(each: Scalar, value: Scalar, factor: float) -> bool:
    if isinstance(each, str) or isinstance(value, str):
        return each == value
    return math.isclose(each * factor, value, rel_tol=_TOLERANCE)
