"""Reads `sparsity:` of a space: a rule or several, and leaves of their parameters, side by side.

sparsity: {rule: {choice: [none, ist]}, keep: {choice: [0.25, 0.5]}, interval: 10}
"""

from collections.abc import Mapping
from typing import Any

from autopeft.space.faults import Faults
from autopeft.space.leaves import (
    Choice,
    Fixed,
    Leaf,
    can_matter,
    default_leaf,
    parents_first,
    read_leaf,
    refuse_unused,
)
from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.space.sparsity import NONE, RuleSpace
from autopeft.space.spellings import RULE_SPELLINGS

KEY = "sparsity"
_RULE = ParameterSchema("rule", "str")


def read_sparsity(
    raw: Any, schemas: Mapping[str, RuleSchema], methods: tuple[str, ...], faults: Faults
) -> tuple[RuleSpace, ...]:
    """The rules that `raw` lists: `none` first, then by name; () where it is `none` alone.

    Args:
        raw: What the file holds.
        schemas: The registered rules by name.
        methods: The space's methods.
        faults: Where faults are noted.
    """
    if not isinstance(raw, Mapping) or "rule" not in raw:
        hint = f"write {{rule: {raw}}}" if isinstance(raw, str) and raw in schemas else ""
        faults.add(KEY, raw, f"{{rule: ...}} with {', '.join(schemas)}", hint)
        return ()
    listed = _listed(raw["rule"], schemas, methods, faults)
    _check_keys(raw, listed, schemas, faults)
    rules = tuple(RuleSpace(rule, _leaves(rule, raw, faults)) for rule in listed)
    return () if [rule.name for rule in listed] == [NONE] else rules


def _listed(
    raw: Any, schemas: Mapping[str, RuleSchema], methods: tuple[str, ...], faults: Faults
) -> list[RuleSchema]:
    leaf, key = read_leaf(raw, _RULE, f"{KEY}.rule", faults), f"{KEY}.rule"
    names = leaf.values if isinstance(leaf, Choice) else ()
    names = (leaf.value,) if isinstance(leaf, Fixed) else names
    listed = []
    for name in sorted(map(str, names), key=lambda name: (name != NONE, name)):
        schema = schemas.get(name)
        if schema is None:
            faults.unknown(key, name, schemas, RULE_SPELLINGS)
        elif methods and schema.methods and not set(schema.methods) & set(methods):
            hint = f"give the space one of {', '.join(schema.methods)}, or remove the rule"
            faults.add(key, name, f"a rule for {', '.join(methods)}", hint)
        else:
            listed.append(schema)
    return listed


def _check_keys(
    raw: Mapping[str, Any],
    listed: list[RuleSchema],
    schemas: Mapping[str, RuleSchema],
    faults: Faults,
) -> None:
    """Faults of keys that no listed rule has."""
    known = list(dict.fromkeys(each.name for rule in listed for each in rule.parameters))
    for name in raw:
        if name == "rule" or name in known:
            continue
        owners = [rule.name for rule in schemas.values() if name in _names(rule)]
        if owners:
            allowed = ", ".join(["rule", *known])
            hint = f"it belongs to {', '.join(owners)}, which sparsity.rule does not list"
            faults.add(f"{KEY}.{name}", name, allowed, hint)
        elif listed or len(raw) == 1:  # what is known is told only where a rule is
            faults.unknown(f"{KEY}.{name}", name, ["rule", *known])


def _names(rule: RuleSchema) -> list[str]:
    return [parameter.name for parameter in rule.parameters]


def _leaves(
    rule: RuleSchema, raw: Mapping[str, Any], faults: Faults
) -> tuple[tuple[str, Leaf], ...]:
    """The leaves of all parameters of a rule that can matter."""
    leaves: dict[str, Leaf] = {}
    for parameter in parents_first(rule.parameters):
        name, key = parameter.name, f"{KEY}.{parameter.name}"
        if not can_matter(parameter, leaves):
            if name in raw:
                refuse_unused(parameter, raw[name], key, faults)
        elif name not in raw:
            leaves[name] = default_leaf(parameter)
        elif leaf := read_leaf(raw[name], parameter, key, faults):
            leaves[name] = leaf
    return tuple(leaves.items())
