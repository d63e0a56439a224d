"""How large a space is: raw, and without duplicates and invalid points, both in closed form.

Notation: a method that is on has B = sizes * settings * sites choices, and N layer sets; a = 1
where it can be off by itself. Methods with their own layers are independent of each other, so
their factors B N + a multiply. Those that share layers are on only where the shared layer set is
not empty: (prod(B + a) - prod(a)) N counts the points in which at least one is on. One point,
with everything off, is no configuration. Of methods that exclude each other one is on, or none
where that can be: their ways add instead.

A sparsity rule adds its own ways to every configuration with a method that it is for. Those
without are all configurations in which these methods have no ways: N(off) counts the
configurations without the methods in `off`.
"""

import itertools
import math
from collections.abc import Sequence

from autopeft.space.layout import Layout
from autopeft.space.method import BoundMethod, Setting
from autopeft.space.sparsity import NONE, BoundRule, BoundSparsity


def cardinality(layout: Layout) -> int:
    """The product of the number of values over all discrete dimensions."""
    return math.prod(
        len(dimension.values) for dimension in layout.dimensions if not dimension.continuous
    )


def distinct(layout: Layout) -> int:
    """How many distinct valid configurations there are; reals count once."""
    if layout.sparsity is None:
        return _without(layout, frozenset()) * settings_ways(layout.training)
    return _with_rules(layout, layout.sparsity) * settings_ways(layout.training)


def _with_rules(layout: Layout, sparsity: BoundSparsity) -> int:
    """Valid choices of methods and rule."""
    everything = _without(layout, frozenset())
    rules = [rule for rule in sparsity.rules if rule.name != NONE]
    total = sum(
        settings_ways(rule.settings)
        * (everything - (_without(layout, _for(rule)) if rule.schema.methods else 0))
        for rule in rules
    )
    if sparsity.lists_none:
        return total + everything
    # Without a rule are those that some rule does not suit: all, less those that every rule suits.
    suited = 0
    bound = [_for(rule) for rule in rules if rule.schema.methods]
    for n in range(len(bound) + 1):
        for unsuited in itertools.combinations(bound, n):
            suited += (-1) ** n * _without(layout, frozenset().union(*unsuited))
    return total + everything - suited


def _for(rule: BoundRule) -> frozenset[str]:
    return frozenset(rule.schema.methods)


def _without(layout: Layout, off: frozenset[str]) -> int:
    """N(off): valid choices of methods, those in `off` left out."""
    alone = [method for method in layout.methods if not method.exclusive]
    own = [method for method in alone if method.layers is not None]
    shared = [method for method in alone if method.layers is None]
    own_ways = math.prod(
        _ways(method, off) * method.layers.count + method.optional
        for method in own
        if method.layers
    )
    all_off = math.prod(int(method.optional) for method in alone)
    shared_ways, with_shared = 1, 0
    if layout.shared:
        on_or_off = math.prod(_ways(method, off) + method.optional for method in shared)
        all_shared_off = math.prod(int(method.optional) for method in shared)
        none = max(all_shared_off, int(layout.shared.may_be_empty))
        shared_ways = (on_or_off - all_shared_off) * layout.shared.count + none
        with_shared = on_or_off * layout.shared.count
        all_off = math.prod(int(method.optional) for method in own) * none
    if layout.choice is None:
        return own_ways * shared_ways - all_off
    either_own, either_shared, neither = _either(layout, off)
    total = own_ways * ((neither + either_own) * shared_ways + either_shared * with_shared)
    return total - all_off * neither


def _either(layout: Layout, off: frozenset[str]) -> tuple[int, int, int]:
    """Of methods that exclude each other: ways with own layers, with shared ones, and with none.

    Shared layers are not counted here. None of them is on where the choice says so, or where the
    one that is chosen is off by itself.
    """
    either, shared = layout.exclusive, layout.shared
    own = sum(_ways(each, off) * each.layers.count for each in either if each.layers)
    others = sum(_ways(each, off) for each in either if not each.layers)
    empty = shared is not None and shared.may_be_empty
    neither = any(each.optional or (empty and each.layers is None) for each in either)
    return own, others, int(neither)


def _ways(method: BoundMethod, off: frozenset[str]) -> int:
    return 0 if method.name in off else method_ways(method)


def method_ways(method: BoundMethod) -> int:
    """B: how often the method can be on, its layers not considered."""
    own = settings_ways(method.settings, method.size) * method.sites.count
    return own * settings_ways(method.training)


def settings_ways(settings: Sequence[Setting], size: Setting | None = None) -> int:
    """How many choices of values there are, sizes of 0 not among them."""
    roots = (setting for setting in settings if setting.parameter.when is None)
    return math.prod(_setting_ways(setting, settings, size) for setting in roots)


def _setting_ways(setting: Setting, settings: Sequence[Setting], size: Setting | None) -> int:
    """Values of a setting, each times the ways of the settings that depend on it."""
    dependent = [
        other
        for other in settings
        if other.parameter.when and other.parameter.when[0] == setting.parameter.name
    ]
    dimension = setting.dimension
    if dimension is None:
        values = [setting.source]
    elif dimension.continuous:
        values = [dimension.high]  # nothing depends on any one value of a real but 0
    else:
        is_size = setting is size
        if not dependent:
            return len(dimension.values) - (is_size and 0 in dimension.values)
        values = [value for value in dimension.values if not (is_size and value == 0)]
    return sum(
        math.prod(
            _setting_ways(other, settings, size)
            for other in dependent
            if other.parameter.means(value)
        )
        for value in values
    )
