"""What an importance map has to hold for one configuration: single weights, sides of blocks.

A study says itself what its map holds (`search.importance_keep`, `search.importance_block`); what
a configuration that stands alone needs is found here.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.methods.units import MEASURED, units
from autopeft.space.schema import Scalar
from autopeft.sparsity.sparse import OF_A_MAP, SparseRule
from autopeft.sparsity.structured import SPARSE, parts_of, place_of


class _Wanted(NamedTuple):
    """Single weights of one matrix.

    Attributes:
        key: The matrix.
        number: How many.
        size: Of how many.
        smallest: The lowest ones.
    """

    key: Key
    number: int
    size: int
    smallest: bool


def share_needed(
    configuration: Configuration, anatomy: Anatomy, usual: Mapping[Key, int]
) -> float | None:
    """The share of every matrix's weights that a map has to rank; None where the usual will do.

    Args:
        configuration: With groups and rule.
        anatomy: The backbone.
        usual: Weights that a map keeps by itself, by matrix.

    Returns:
        1 for the lowest weights, and for a budget over all matrices that is more than the usual
        weights of all: of some it may then take all.
    """
    wanted = [*_of_groups(configuration, anatomy), *_of_rule(configuration, anatomy)]
    if any(each.smallest for each in wanted) or _passes(configuration, anatomy, usual):
        return 1.0
    if all(each.number <= usual[each.key] for each in wanted):
        return None
    return max(each.number / each.size for each in wanted)


def side_needed(configuration: Configuration, usual: int) -> int:
    """The side of the blocks that a map has to sum.

    Args:
        configuration: With groups and rule.
        usual: What a map sums by itself; it stays where all sides are multiples of it.
    """
    chosen = [(dict(group.settings), MEASURED) for group in _sparse(configuration)]
    blocks = [
        (int(each["block"]), str(each["score"]))
        for each, scores in (*chosen, (dict(configuration.sparsity), OF_A_MAP))
        if each.get("granularity") == "block" and each.get("score") in scores
    ]
    whole = (score != "gradient_sum" and side % usual == 0 for side, score in blocks)
    if all(own or side == usual for own, (side, _) in zip(whole, blocks, strict=True)):
        return usual
    return math.gcd(*(side for side, _ in blocks))


def _sparse(configuration: Configuration) -> list[Group]:
    return [group for group in configuration.groups if group.method == SPARSE]


def _of_groups(configuration: Configuration, anatomy: Anatomy) -> Iterator[_Wanted]:
    for group in _sparse(configuration):
        if group["granularity"] != "weight" or group["score"] not in MEASURED:
            continue
        for place in registry[SPARSE].places(group, anatomy):
            own = units(group, place)
            number = own.number(float(group["density"]))
            yield _Wanted((place.layer, place.site), number, own.count, bool(group["smallest"]))


def _of_rule(configuration: Configuration, anatomy: Anatomy) -> Iterator[_Wanted]:
    """Of a rule that gives each matrix what its own methods had."""
    rule = _rule_of_weights(configuration)
    if rule.get("scope") != "site" or rule.get("score") not in MEASURED:
        return
    parts = parts_of(configuration, anatomy, LINEAR_ROLES)
    for key in parts.matrices:
        place = place_of(key, anatomy)
        size = place.d_in * place.d_out
        yield _Wanted(key, min(size, parts.params(key)), size, bool(rule["smallest"]))


def _passes(configuration: Configuration, anatomy: Anatomy, usual: Mapping[Key, int]) -> bool:
    """Whether a rule whose matrices share one budget wants more than the usual weights of all."""
    rule = _rule_of_weights(configuration)
    if rule.get("scope") != "global" or rule.get("score") not in OF_A_MAP:
        return False
    parts = parts_of(configuration, anatomy, LINEAR_ROLES)
    return bool(rule["smallest"]) or parts.total > sum(usual[key] for key in parts.matrices)


def _rule_of_weights(configuration: Configuration) -> Mapping[str, Scalar]:
    """The settings of the rule `sparse` on single weights, or {}."""
    rule = dict(configuration.sparsity)
    own = rule.get("rule") == SparseRule.schema.name and rule.get("granularity") == "weight"
    return rule if own else {}
