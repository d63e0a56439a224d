"""How large a space is: raw, and without duplicates and invalid points, both in closed form.

Notation: a method that is on has B = sizes * settings * sites choices, and N layer sets; a = 1
where it can be off by itself. Methods with their own layers are independent of each other, so
their factors B N + a multiply. Those that share layers are on only where the shared layer set is
not empty: (prod(B + a) - prod(a)) N counts the points in which at least one is on. One point,
with everything off, is no configuration.
"""

import math

from autopeft.space.layout import Layout
from autopeft.space.method import BoundMethod, Setting


def cardinality(layout: Layout) -> int:
    """The product of the number of values over all discrete dimensions."""
    return math.prod(
        len(dimension.values) for dimension in layout.dimensions if not dimension.continuous
    )


def distinct(layout: Layout) -> int:
    """How many distinct valid configurations there are; reals count once."""
    own = [method for method in layout.methods if method.layers is not None]
    shared = [method for method in layout.methods if method.layers is None]
    own_ways = math.prod(
        method_ways(method) * method.layers.count + method.optional
        for method in own
        if method.layers
    )
    all_off = math.prod(int(method.optional) for method in layout.methods)
    shared_ways = 1
    if layout.shared:
        on_or_off = math.prod(method_ways(method) + method.optional for method in shared)
        off = math.prod(int(method.optional) for method in shared)
        none = max(off, int(layout.shared.may_be_empty))
        shared_ways = (on_or_off - off) * layout.shared.count + none
        all_off = math.prod(int(method.optional) for method in own) * none
    return (own_ways * shared_ways - all_off) * _training_ways(layout)


def method_ways(method: BoundMethod) -> int:
    """B: how often the method can be on, its layers not considered."""
    roots = (setting for setting in method.settings if setting.parameter.when is None)
    ways = math.prod(_setting_ways(setting, method) for setting in roots)
    return ways * method.sites.count


def _setting_ways(setting: Setting, method: BoundMethod) -> int:
    """Values of a setting, each times the ways of the settings that depend on it."""
    dependent = [
        (other, other.parameter.when[1])
        for other in method.settings
        if other.parameter.when and other.parameter.when[0] == setting.parameter.name
    ]
    dimension = setting.dimension
    if dimension is None:
        values = [setting.source]
    elif dimension.continuous:
        return 1  # nothing depends on one exact value of a real
    else:
        is_size = setting is method.size
        if not dependent:
            return len(dimension.values) - (is_size and 0 in dimension.values)
        values = [value for value in dimension.values if not (is_size and value == 0)]
    return sum(
        math.prod(_setting_ways(other, method) for other, needed in dependent if needed == value)
        for value in values
    )


def _training_ways(layout: Layout) -> int:
    dimensions = (setting.dimension for setting in layout.training)
    return math.prod(
        len(dimension.values) for dimension in dimensions if dimension and not dimension.continuous
    )
