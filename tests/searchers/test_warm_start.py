"""What earlier studies found good, carried over: exactly, or not at all."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tiny_backbones import tiny_backbone

from autopeft.api import problem as problems
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.searchers.base import Problem
from autopeft.searchers.warm_start import Carried, carried, chosen
from autopeft.study.definition import parse_definition
from autopeft.study.records import Origin, TrialRecord

FIXED = {"learning_rate": 2e-4, "weight_decay": 0.0, "warmup_ratio": 0.06}
SPACE = {
    "methods": {
        "lora": {
            "rank": {"choice": [0, 2, 4]},
            "alpha_over_rank": 2,
            "sites": {"subset": ["query", "up"]},
            "layers": {"mode": "range"},
        },
        "serial_adapter": {"size": {"choice": [0, 8]}, "layers": {"mode": "range"}},
    },
    "training": {"learning_rate": {"float": [1e-4, 1e-2], "log": True}},
}

MakeTrial = Callable[..., TrialRecord]


@cache
def anatomy() -> Anatomy:
    return tiny_backbone("bert", torch.float32).anatomy


def problem(**blocks: Any) -> Problem:
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "d"}, "space": SPACE} | blocks
    definition = parse_definition(plain, where="test", base=None)
    facts = problems.Facts(0.25, 1.0, 99, 10_000, 500)
    bound = problems.bind_space(definition, anatomy())
    return problems.make_problem(definition, anatomy(), bound, facts)


def lora(
    rank: int = 4, layers: tuple[int, ...] = (1, 2), sites: str = "query", **changes: Any
) -> Group:
    settings = {"rank": rank, "alpha": 2.0 * rank, "dropout": 0.0} | changes
    return Group.of("lora", layers, sites.split(), **settings)


def adapter(size: int = 8) -> Group:
    return Group.of(
        "serial_adapter", [0], ["ffn"], size=size, activation="relu", scale=1.0, dropout=0.0
    )


def configuration(*groups: Group, **training: float) -> Configuration:
    return Configuration.of(groups, training=FIXED | {"learning_rate": 1.2345e-3} | training)


@pytest.fixture
def carry(make_trial: MakeTrial) -> Callable[..., Any]:
    """One configuration carried over: it, or what keeps it out."""

    def run(there: Configuration, fixed: dict[str, float] = FIXED, **blocks: Any) -> Any:
        trial = make_trial(7, 0.8, 10, configuration=there, hash=there.hash, study="old")
        found, misfits = carried([trial], problem(**blocks), fixed)
        assert len(found) + len(misfits) == 1
        return found[0] if found else misfits[0].differences

    return run


def test_what_the_space_holds_is_carried_over_exactly(carry: Callable[..., Any]) -> None:
    there = configuration(lora(), adapter())
    found = carry(there)
    assert found == Carried("old", 7, there.hash, there)
    assert Carried.from_dict(found.to_dict()) == found
    proposal = found.proposal
    assert (proposal.configuration, proposal.origin) == (there, Origin.WARM_START)
    assert proposal.details["source"] == "study old, trial 7"


@pytest.mark.parametrize(
    ("groups", "differences"),
    [
        ([lora(rank=3, alpha=6.0)], ("lora alpha 6, here 8", "lora rank 3, here 4")),
        ([lora(alpha=4.0)], ("lora alpha 4, here 8",)),
        ([lora(layers=(0, 2))], ("lora layers 0 2, here 2",)),
        ([lora(sites="query value")], ("lora sites query value, here query",)),
        ([lora(sites="value")], ("none of its methods and sites is in the space",)),
        (
            [lora(), Group.of("prefix", [0], length=2, reparametrise=False)],
            ("prefix is not in the space",),
        ),
        ([lora(layers=(1,)), lora(rank=2, layers=(2,))], ("lora in 2 groups, here in one",)),
        ([lora(), adapter(6)], ("serial_adapter size 6, here 8",)),
    ],
)
def test_what_does_not_fit_is_named(
    groups: list[Group], differences: tuple[str, ...], carry: Callable[..., Any]
) -> None:
    assert carry(configuration(*groups)) == differences


def test_a_varied_training_value_beyond_the_space_does_not_fit(carry: Callable[..., Any]) -> None:
    assert carry(configuration(lora(), learning_rate=0.5)) == ("learning_rate 0.5, here 0.01",)


def test_a_value_that_both_studies_fix_is_the_new_ones(carry: Callable[..., Any]) -> None:
    there = configuration(lora(), weight_decay=0.1)
    found = carry(there, FIXED | {"weight_decay": 0.1})
    assert found.configuration == configuration(lora(), weight_decay=0.0)
    assert found.hash == there.hash
    assert carry(there) == ("weight_decay 0.1, here 0",), "the earlier space varied it"


def test_a_rate_that_only_the_earlier_space_varied_does_not_fit(carry: Callable[..., Any]) -> None:
    space = {"methods": SPACE["methods"]}
    assert carry(configuration(lora()), space=space) == ("learning_rate 0.0012345, here 0.0002",)


def test_what_breaks_a_cap_does_not_fit(carry: Callable[..., Any]) -> None:
    capped = [{"metric": "accuracy"}, {"metric": "trainable_params", "cap": 200}]
    assert carry(configuration(lora()), objectives=capped) == ("over a cap or outside `deploy`",)


def test_a_method_that_the_space_cannot_leave_out_is_named(carry: Callable[..., Any]) -> None:
    methods = SPACE["methods"] | {"serial_adapter": {"size": 8, "layers": [0]}}
    space = SPACE | {"methods": methods}
    assert carry(configuration(lora()), space=space) == (
        "the space cannot leave serial_adapter out",
    )


# -- choosing -------------------------------------------------------------------------------------


def front(study: str, *groups: Group) -> list[Carried]:
    """By rising quality, as fronts are; trials are numbered from 0."""
    each = [configuration(group) for group in groups]
    return [Carried(study, number, c.hash, c) for number, c in enumerate(each)]


LADDER = (
    lora(2, (2,)),
    lora(2, (1, 2)),
    lora(4, (1, 2)),
    lora(4, (0, 1, 2)),
    lora(4, (0, 1, 2), "query up"),
)
"""Of 128, 256, 512, 768 and 1728 parameters."""


def test_the_best_comes_first_then_what_spans_the_sizes() -> None:
    picked = chosen([front("a", *LADDER)], 5, problem(), frozenset())
    assert [each.trial for each in picked] == [4, 0, 2, 1, 3]


def test_no_more_than_asked_and_studies_by_turns() -> None:
    other = [lora(2, (0,)), lora(4, (0,))]
    picked = chosen([front("a", *LADDER), front("b", *other)], 4, problem(), frozenset())
    assert [(each.study, each.trial) for each in picked] == [
        ("a", 4),
        ("b", 1),
        ("a", 0),
        ("b", 0),
    ]


def test_what_is_tried_anyway_or_twice_is_taken_once() -> None:
    same = front("b", LADDER[4])
    best = same[0].configuration.hash
    picked = chosen([front("a", *LADDER), same], 9, problem(), frozenset())
    assert [each.configuration.hash for each in picked].count(best) == 1
    assert len(picked) == 5
    picked = chosen([front("a", *LADDER)], 9, problem(), frozenset([best]))
    assert [each.trial for each in picked] == [0, 2, 1, 3]


def test_nothing_comes_of_nothing() -> None:
    assert chosen([], 3, problem(), frozenset()) == []
    assert chosen([[]], 3, problem(), frozenset()) == []
    assert chosen([front("a", *LADDER)], 0, problem(), frozenset()) == []
