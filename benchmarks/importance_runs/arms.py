"""What is compared: rules for where and what to train, each at a budget of parameters.

A budget is what LoRA of a rank has at `placing.ROLES` of every layer. An arm keeps it as nearly as
its whole units (ranks, channels, heads, blocks) allow: within `TOLERANCE`. What counts are the
scalars that training moves (`moved_params`). Every arm that chooses has a control that leaves the
choice to chance and is the same in all else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import NO_SPARSITY, TRAINING_KEYS, Configuration, Group
from autopeft.space.schema import Scalar
from autopeft.sparsity import rules
from autopeft.sparsity.id3 import budget_of
from benchmarks.importance_runs.placing import (
    ROLES,
    budget,
    keys_of,
    lora,
    lora_at,
    shuffled,
    sparse,
    weights,
)

RANKS = (2, 4, 16)
"""Of LoRA, whose parameters are the budgets: 0.6, 1.2 and 4.9 % of MiniLM's linear weights. Whole
heads of two sites come within 5 % of each, blocks of 32 exactly."""

TOLERANCE = 0.08
"""DiaBlo's blocks are 7 % above; all others are nearer."""

BLOCK = 32

WIDER = 4
"""Rules that leave parts of a configuration out begin with so many times the budget."""

SPT_WIDER, SPT_SWEEP = 2, range(80, 151, 2)
"""SPT's LoRA is wider than the budget's, and its budget is swept, in percent of ours: a matrix
more or less is several percent."""

THIRD = 3
"""The top third of the layers, and as many sites in those arms that choose sites."""

Plan: TypeAlias = tuple[Sequence[Group], Mapping[str, Scalar]]
"""Groups, and the sparsity rule with its parameters."""


@dataclass(frozen=True)
class Case:
    """What an arm is made for.

    Attributes:
        anatomy: With its importance map.
        rank: Of the LoRA whose parameters are the budget.
        replicate: The seed; arms that leave their places to chance differ by it.
    """

    anatomy: Anatomy
    rank: int
    replicate: int

    @property
    def params(self) -> int:
        """The budget."""
        return budget(self.anatomy, self.rank)

    @property
    def layers(self) -> range:
        """All layers."""
        return range(len(self.anatomy.layers))

    def share(self, roles: Sequence[str] = ROLES) -> float:
        """The budget's share of the weights of some roles."""
        return self.params / weights(self.anatomy, roles)


@dataclass(frozen=True)
class Arm:
    """One thing to compare.

    Attributes:
        make: Gives its groups and rule.
        control: The arm that it must beat to be worth anything.
        chance: Whether it leaves the choice to chance.
        others: Further arms that it is compared with.
        source: The paper that its form is from.
        change: What becomes of the configuration that it makes.
    """

    make: Callable[[Case], Plan]
    control: str = "lora"
    chance: bool = False
    others: tuple[str, ...] = ()
    source: str = ""
    change: Callable[[Configuration, Case], Configuration] | None = None


def configured(arm: Arm, case: Case, rate: float) -> Configuration:
    """An arm's configuration at a learning rate."""
    groups, sparsity = arm.make(case)
    training: dict[str, Scalar] = {
        "learning_rate": rate,
        "weight_decay": 0.0,
        "warmup_ratio": 0.06,
    }
    made = Configuration.of(groups, training=training, sparsity=sparsity)
    return made if arm.change is None else arm.change(made, case)


def ruled(rule: str, **given: Scalar) -> dict[str, Scalar]:
    """A rule with its own defaults and what is said otherwise."""
    defaults = {
        each.name: each.default
        for each in rules[rule].schema.parameters
        if each.when is None and each.default is not None
    }
    return {"rule": rule, **defaults, **given}


# -- what arms are made by ------------------------------------------------------------------------


def _lora(case: Case) -> Plan:
    return [lora(case.rank, case.layers)], NO_SPARSITY


def _global(
    case: Case, *, score: str, granularity: str, roles: Sequence[str] = ROLES, block: int = 0
) -> Plan:
    """The units of the highest scores over all sites: SPEFT's and SMT's global choice."""
    groups = lora_at(keys_of(case.anatomy, roles), case.anatomy, case.params)
    blocks: dict[str, Scalar] = {"block": block} if block else {}
    settings = {"scope": "global", "granularity": granularity, "score": score, **blocks}
    return groups, ruled("sparse", **settings)


def _diagonal(case: Case, *, score: str) -> Plan:
    """DiaBlo's form, squares of 1.5 times the rank, and the same squares elsewhere."""
    side = 3 * case.rank // 2
    group = sparse(
        case.anatomy,
        ROLES,
        side / case.anatomy.hidden_size,
        score=score,
        granularity="block",
        block=side,
    )
    return [group], NO_SPARSITY


def _rows(case: Case, *, score: str, roles: Sequence[str], noise: int) -> Plan:
    """The same share of every map's input channels: S2FT's and GIFT-SW's forms."""
    group = sparse(
        case.anatomy, roles, case.share(roles), score=score, granularity="input", noise=noise
    )
    return [group], NO_SPARSITY


def _channels(case: Case, *, score: str) -> Plan:
    """SCT's form: as many of the channels after attention as K^2 + K comes nearest with."""
    per_layer = case.params / len(case.layers)
    channels = round(((4 * per_layer + 1) ** 0.5 - 1) / 2)
    settings: dict[str, Scalar] = {"channels": channels, "score": score}
    return [Group.of("salient_channels", case.layers, ["attention"], **settings)], NO_SPARSITY


def _spt(case: Case) -> Plan:
    """Of a sweep over budgets, what comes nearest to ours, as SPT keeps it."""
    groups = [lora(SPT_WIDER * case.rank, case.layers)]
    training: dict[str, Scalar] = dict.fromkeys(TRAINING_KEYS, 0.0)

    def distance(rule: Mapping[str, Scalar]) -> int:
        swept = Configuration.of(groups, training=training, sparsity=rule)
        return abs(counting.trainable_params(swept, case.anatomy) - case.params)

    shares = [round(percent / 100 / SPT_WIDER, 4) for percent in SPT_SWEEP]
    return groups, min((ruled("spt", budget=share) for share in shares), key=distance)


def _elsewhere(configuration: Configuration, case: Case) -> Configuration:
    """What a rule made of a configuration, at places of chance."""
    resolved = counting.resolved(configuration, case.anatomy)
    return shuffled(resolved, case.anatomy, case.replicate)


def _at(case: Case, keys: Iterable[Key]) -> Plan:
    return lora_at(list(keys), case.anatomy, case.params), NO_SPARSITY


def _n_sites(case: Case) -> int:
    return len(keys_of(case.anatomy)) // THIRD


def _sites_by(case: Case, *, score: str) -> Plan:
    ranking = case.anatomy.measured().site_ranking(score, ROLES)
    return _at(case, ranking[: _n_sites(case)])


def _sites_random(case: Case) -> Plan:
    keys = keys_of(case.anatomy)
    order = np.random.default_rng([0, case.replicate]).permutation(len(keys))
    return _at(case, [keys[place] for place in order[: _n_sites(case)]])


def _top(case: Case) -> Plan:
    lowest = len(case.layers) - len(case.layers) // THIRD
    return _at(case, [key for key in keys_of(case.anatomy) if key[0] >= lowest])


def _acting(case: Case, *, rule: str) -> Plan:
    return [lora(case.rank, case.layers)], ruled(rule)


def _id3_lora(case: Case, *, rule: str) -> Plan:
    return [lora(WIDER * case.rank, case.layers)], ruled(rule, budget=1 / WIDER)


def _id3_weights(case: Case, *, rule: str) -> Plan:
    """From random weights, since a map keeps too few of the measured ones."""
    group = sparse(case.anatomy, ROLES, WIDER * case.share(), score="random")
    return [group], ruled(rule, budget=1 / WIDER)


def _adalora(case: Case, *, rule: str) -> Plan:
    """From 1.5 times the rank, as peft's defaults (12 to 8)."""
    return [lora(3 * case.rank // 2, case.layers)], ruled(rule, target=2 / 3)


def moved_params(configuration: Configuration, anatomy: Anatomy) -> int:
    """Scalars that have moved when training ends: what arms are matched by.

    They are what an adapter stores, but for ID3: its masked scalars stay as they were, and are
    stored all the same.
    """
    stored = counting.trainable_params(configuration, anatomy)
    sparsity = dict(configuration.sparsity)
    masked = sparsity["rule"] in ("id3", "id3_random")
    return budget_of(stored, float(sparsity["budget"])) if masked else stored


# -- the arms -------------------------------------------------------------------------------------

SPEFT, S2FT, SMT = "SPEFT, arXiv 2412.13488", "S2FT, arXiv 2412.06289", "SMT, arXiv 2405.15525"


def _families() -> Iterable[tuple[str, Arm]]:
    """Sparse weights by score, and the same by chance."""
    for score in ("gradient", "sensitivity", "snip", "fisher", "magnitude"):
        make = partial(_global, score=score, granularity="weight")
        yield f"weights-{score}", Arm(make, "weights-random", source=SPEFT)
    make = partial(_global, score="random", granularity="weight")
    yield "weights-random", Arm(make, chance=True, source="SHiRA, arXiv 2406.13175")
    for name, granularity, roles, block in (
        ("inputs", "input", ROLES, 0),
        ("outputs", "output", ROLES, 0),
        ("heads", "head", ("query", "value"), 0),
        ("blocks", "block", ROLES, BLOCK),
    ):
        form = partial(_global, granularity=granularity, roles=roles, block=block)
        yield f"{name}-gradient", Arm(partial(form, score="gradient"), f"{name}-random")
        yield f"{name}-random", Arm(partial(form, score="random"), chance=True)


def _published() -> Iterable[tuple[str, Arm]]:
    """The forms of papers, each beside the same form by chance."""
    diagonal = partial(_diagonal, score="diagonal")
    yield "diablo", Arm(diagonal, "diablo-random", source="DiaBlo, arXiv 2506.03230")
    yield "diablo-random", Arm(partial(_diagonal, score="random"), chance=True)
    rows = partial(_rows, roles=("down",), noise=0)
    yield "s2ft-gradient", Arm(partial(rows, score="gradient"), "s2ft-random", source=S2FT)
    yield "s2ft-random", Arm(partial(rows, score="random"), chance=True, source=S2FT)
    smt = partial(_global, granularity="block", roles=("query", "key", "value"), block=BLOCK)
    yield "smt", Arm(partial(smt, score="gradient_sum"), "smt-random", source=SMT)
    yield "smt-random", Arm(partial(smt, score="random"), chance=True)
    gift = partial(_rows, roles=ROLES, noise=4)
    own = "GIFT-SW, arXiv 2408.15300"
    yield "gift-sw", Arm(partial(gift, score="activation"), "gift-sw-random", source=own)
    yield "gift-sw-random", Arm(partial(gift, score="random"), chance=True)
    own = "SCT, arXiv 2309.08513"
    yield "sct", Arm(partial(_channels, score="activation"), "sct-random", source=own)
    yield "sct-random", Arm(partial(_channels, score="random"), chance=True)
    yield "spt", Arm(_spt, "spt-shuffled", source="SPT, arXiv 2303.08566")
    yield "spt-shuffled", Arm(_spt, chance=True, change=_elsewhere)


def _placements() -> Iterable[tuple[str, Arm]]:
    """LoRA at a third of the sites, at higher ranks."""
    for score in ("fisher", "snip", "activation"):
        make = partial(_sites_by, score=score)
        yield f"sites-{score}", Arm(make, "sites-random", others=("layers-top",))
    yield "sites-random", Arm(_sites_random, chance=True)
    yield "layers-top", Arm(_top, "sites-random")


def _schedules() -> Iterable[tuple[str, Arm]]:
    """Rules that act while LoRA (or single weights) trains."""
    own = "IST, arXiv 2410.11772"
    yield "ist", Arm(partial(_acting, rule="ist"), "rst", source=own)
    yield "rst", Arm(partial(_acting, rule="rst"), chance=True, source=own)
    own = "LISA, arXiv 2403.17919"
    yield "lisa", Arm(partial(_acting, rule="lisa"), chance=True, others=("rst",), source=own)
    own = "ID3, arXiv 2408.14470"
    yield "id3-lora", Arm(partial(_id3_lora, rule="id3"), "id3-lora-random", source=own)
    yield "id3-lora-random", Arm(partial(_id3_lora, rule="id3_random"), chance=True)
    others, make = ("weights-random", "weights-gradient"), partial(_id3_weights, rule="id3")
    yield "id3-weights", Arm(make, "id3-weights-random", others=others, source=own)
    yield "id3-weights-random", Arm(partial(_id3_weights, rule="id3_random"), chance=True)
    own = "AdaLoRA, arXiv 2303.10512"
    yield "adalora", Arm(partial(_adalora, rule="adalora"), "adalora-random", source=own)
    yield "adalora-random", Arm(partial(_adalora, rule="adalora_random"), chance=True)


ARMS: Mapping[str, Arm] = {
    "lora": Arm(_lora),
    **dict(_families()),
    **dict(_published()),
    **dict(_placements()),
    **dict(_schedules()),
}
"""All of them; `lora` is what every one is compared with besides its control."""
