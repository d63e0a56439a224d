"""Sparse weights in place of a configuration's LoRA: as many parameters, at the same maps.

With `scope: site`, every map trains as many of its weights (rows, columns, blocks, heads) as its
LoRA had parameters, as nearly as whole units allow. With `scope: global`, the highest units over
all of the configuration's maps share what LoRA had in all: SPEFT's global top-k (arXiv
2412.13488), SMT's blocks (arXiv 2405.15525). Units of different sizes are compared by their mean
score per weight. With `scope: global` no matrix gives more single weights than the importance map
keeps of it (a tenth, or less of a large backbone); what the budget has left then goes to the
others, and a budget that all together cannot give is refused. Scores without data know no order
between maps (`random`, `diagonal`): each gets its share of the units.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods.sparse import DEFAULT_BLOCK
from autopeft.methods.units import (
    GRANULARITIES,
    KEEP_ALL,
    KEEP_MORE,
    MEASURED,
    SCORES,
    Units,
    fault_at,
    measured_units,
    scores_at,
    units_at,
)
from autopeft.space.schema import ParameterSchema, RuleSchema, Scalar
from autopeft.sparsity.base import Plain, rules
from autopeft.sparsity.ranking import Price, ranking
from autopeft.sparsity.structured import Parts, parts_of, place_of, remembered

WITHOUT_ORDER = ("random", "diagonal")
"""Scores that say nothing of two maps."""


OF_A_MAP = (*MEASURED, "magnitude")
"""Scores whose order between maps the importance map knows."""


class SparseRule(Plain):
    """The rule `sparse`."""

    schema = RuleSchema(
        "sparse",
        parameters=(
            ParameterSchema("scope", "str", default="global", choices=("site", "global")),
            ParameterSchema("score", "str", default="gradient", choices=SCORES, measured=OF_A_MAP),
            ParameterSchema("granularity", "str", default="weight", choices=GRANULARITIES),
            ParameterSchema("smallest", "bool", default=False),
            ParameterSchema(
                "block", "int", default=DEFAULT_BLOCK, minimum=1, when=("granularity", "block")
            ),
        ),
        methods=("lora",),
    )
    source = "He et al. 2024, Refining Salience-Aware Sparse Fine-Tuning, arXiv 2412.13488"

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """See `autopeft.sparsity.sparse`.

        Raises:
            BackboneError: It needs scores that are not there or more single weights than the
                importance map keeps, or a map lacks such units.
        """
        return _resolved(configuration, anatomy)


@remembered
def _resolved(configuration: Configuration, anatomy: Anatomy) -> Configuration:
    settings = dict(configuration.sparsity)
    parts = parts_of(configuration, anatomy, LINEAR_ROLES)
    keys = sorted(parts.matrices)
    own = _units(keys, anatomy, settings)
    numbers = _numbers(parts, own, settings, anatomy) if keys else {}
    groups = [
        _group(key, own[key].density(number), settings)
        for key, number in numbers.items()
        if number
    ]
    return Configuration.of([*parts.others, *groups], training=dict(configuration.training))


def _units(
    keys: Sequence[Key], anatomy: Anatomy, settings: Mapping[str, Scalar]
) -> dict[Key, Units]:
    granularity, block = str(settings["granularity"]), int(settings.get("block") or 0)
    places = [place_of(key, anatomy) for key in keys]
    found = [fault_at(granularity, place, block=block) for place in places]
    faults = [fault for fault in found if fault is not None]
    if faults:
        raise BackboneError(faults)
    return {
        key: units_at(granularity, place, block=block)
        for key, place in zip(keys, places, strict=True)
    }


def _numbers(
    parts: Parts, own: Mapping[Key, Units], settings: Mapping[str, Scalar], anatomy: Anatomy
) -> dict[Key, int]:
    """Units of every matrix."""
    score = str(settings["score"])
    if settings["scope"] == "site":
        return {
            key: min(each.count, max(1, round(parts.params(key) / each.size)))
            for key, each in own.items()
        }
    if score in WITHOUT_ORDER:
        return _shares(own, parts.total)
    if settings["granularity"] == "weight":
        return _first_weights(own, parts.total, settings, anatomy)
    return _highest(own, parts.total, settings, anatomy)


def _first_weights(
    own: Mapping[Key, Units], budget: int, settings: Mapping[str, Scalar], anatomy: Anatomy
) -> dict[Key, int]:
    """The highest single weights of all matrices, or the lowest, as many as the budget pays."""
    keys, importance = sorted(own), anatomy.measured()
    score, smallest = str(settings["score"]), bool(settings["smallest"])
    if smallest and not all(scores_at(importance, score, key).whole for key in keys):
        raise BackboneError(
            Fault(
                "configuration",
                "sparsity.smallest",
                "the lowest single weights of all maps, of which the map keeps the highest",
                "scope site with scores magnitude and random, another granularity, or a whole "
                f"map: {KEEP_ALL}",
            )
        )
    order = ranking(importance, score, smallest=smallest)
    kept = order.kept(keys)
    most = sum(kept.values())
    if most < min(budget, sum(each.count for each in own.values())):
        raise BackboneError(
            Fault(
                "configuration",
                "sparsity",
                f"{budget:,} single weights of {len(keys)} matrices",
                f"at most {most:,}, which the importance map keeps of these matrices",
                "a lower rank, another granularity, the score random, or a map that keeps more: "
                + KEEP_MORE,
            )
        )
    return order.bought(keys, {key: Price(number) for key, number in kept.items()}, budget)


def _shares(own: Mapping[Key, Units], budget: int) -> dict[Key, int]:
    """The same share of every matrix, exact in the sum: largest remainders first."""
    weights = sum(each.count * each.size for each in own.values())
    wanted = {key: each.count * min(1.0, budget / weights) for key, each in own.items()}
    numbers = {key: int(value) for key, value in wanted.items()}
    left = budget - sum(numbers[key] * own[key].size for key in own)
    for key in sorted(own, key=lambda key: (numbers[key] - wanted[key], key)):
        if own[key].size <= left and numbers[key] < own[key].count:
            numbers[key] += 1
            left -= own[key].size
    return numbers


def _highest(
    own: Mapping[Key, Units],
    budget: int,
    settings: Mapping[str, Scalar],
    anatomy: Anatomy,
) -> dict[Key, int]:
    """The highest rows, columns, blocks or heads that the budget pays; at least one."""
    score, importance = str(settings["score"]), anatomy.measured()
    keys = sorted(own)
    if score == "activation" and len({each.axis for each in own.values()}) > 1:
        given = "activation of heads of output, whose rows hold norms, beside others"
        raise BackboneError(Fault("configuration", "sparsity.score", given, "another score"))
    values = [
        measured_units(own[key], scores_at(importance, score, key), score, importance.block)
        / _comparable(own[key], score)
        for key in keys
    ]
    owners = np.repeat(np.arange(len(keys)), [len(each) for each in values])
    together = np.concatenate(values)
    order = np.argsort(together if settings["smallest"] else -together, kind="stable")
    costs = np.array([own[key].size for key in keys])[owners[order]]
    taken = max(1, int(np.searchsorted(np.cumsum(costs), budget, side="right")))
    counts = np.bincount(owners[order[:taken]], minlength=len(keys))
    return {key: int(count) for key, count in zip(keys, counts, strict=True)}


def _comparable(own: Units, score: str) -> int:
    """What a unit's score is divided by: its weights, or its rows where each holds a norm."""
    return own.lines if score == "activation" and own.axis == "input" else own.size


def _group(key: Key, density: float, settings: Mapping[str, Scalar]) -> Group:
    layer, role = key
    own = {name: settings[name] for name in ("score", "granularity", "smallest")}
    if settings["granularity"] == "block":
        own["block"] = settings["block"]
    if settings["granularity"] == "input":
        own["noise"] = 0
    return Group.of("sparse", (layer,), (role,), density=density, **own)


rules.register(SparseRule())
