"""The point of a space that comes nearest to a configuration from elsewhere.

Every dimension takes its legal value closest to what the configuration says, each by itself: no
search and no chance, and a configuration that the space can express comes out exactly. A space
has one group of every method; where the configuration has several, they count as one on all their
layers and sites, with the settings of the group on most layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.space.layout import Layout
from autopeft.space.method import NO_METHOD, BoundMethod, Setting, layers_of
from autopeft.space.schema import Scalar

Groups = Sequence[Mapping[str, Any]]


def nearest(layout: Layout, plain: Mapping[str, Any]) -> dict[str, Scalar] | None:
    """The canonical point nearest to a configuration, or None where no method is left of it.

    Args:
        layout: The space.
        plain: The form of `Configuration.to_dict`. Settings and training values may be left out:
            they are then the defaults, or the middle of what the space allows.
    """
    raw: dict[str, Scalar] = {}
    for method in layout.methods:
        raw |= _method(method, plain.get(method.name, ()), plain.get("training", {}))
    raw |= (choice := _choice(layout, plain))
    if layout.choice and not choice:
        return None
    if layout.shared:
        sharing = [
            plain.get(method.name, ()) for method in layout.methods if method.layers is None
        ]
        raw |= layout.shared.write(
            layout.shared.nearest(layers_of([entry for groups in sharing for entry in groups]))
        )
    if layout.sparsity:
        on = [part.method.name for part in layout.parts(raw)]
        raw |= layout.sparsity.nearest(plain.get("sparsity", {}), on)
    raw |= _training(layout.training, plain.get("training", {}))
    point = layout.canonical(raw)
    return point if layout.parts(point) else None


def _choice(layout: Layout, plain: Mapping[str, Any]) -> dict[str, Scalar]:
    """Of methods that exclude each other, the one on most layers."""
    if layout.choice is None:
        return {}
    held = {each: len(layers_of(plain.get(each.name, ()))) for each in layout.exclusive}
    most = max(layout.exclusive, key=lambda each: held[each])
    if held[most]:
        return most.presence
    return {layout.choice.name: NO_METHOD} if NO_METHOD in layout.choice.values else {}


def _training(settings: Sequence[Setting], training: Mapping[str, Any]) -> dict[str, Scalar]:
    """Values of training dimensions; the default, or the middle, where nothing is said."""
    values: dict[str, Scalar] = {}
    for setting in settings:
        if dimension := setting.dimension:
            value = training.get(setting.parameter.name, setting.parameter.default)
            values[dimension.name] = (
                dimension.decode(0.5) if value is None else dimension.closest(value)
            )
    return values


def _method(method: BoundMethod, groups: Groups, training: Mapping[str, Any]) -> dict[str, Scalar]:
    """Values of the method's own dimensions; one that cannot be off is at its smallest."""
    if not groups:
        own = method.layers.smallest[0] if method.layers else None
        smallest = method.extreme(largest=False, sites=method.sites.smallest[0], spots=own)
        return method.absence or smallest
    leading = max(groups, key=lambda entry: len(entry["layers"]))
    raw: dict[str, Scalar] = method.presence | _training(method.training, training)
    for setting in method.settings:
        if dimension := setting.dimension:
            value = _wanted(setting, leading, method.schema.size)
            if value is None:
                raw[dimension.name] = dimension.decode(0.5)
            elif setting is method.size:
                raw[dimension.name] = dimension.nearest(float(value))
            else:
                raw[dimension.name] = dimension.closest(value)
    chosen = {site for entry in groups for site in entry.get("sites", ())}
    raw |= method.sites.write(tuple(site for site in method.sites.sites if site in chosen))
    if method.layers:
        raw |= method.layers.write(method.layers.nearest(method.spots(groups)))
    return raw


def _wanted(setting: Setting, entry: Mapping[str, Any], size: str) -> Scalar | None:
    """What the entry says of a setting: its value, or what that is per size."""
    value: Scalar | None = entry.get(setting.parameter.name)
    if setting.per_size:
        return None if value is None else float(value) / float(entry[size])
    return setting.parameter.default if value is None else value
