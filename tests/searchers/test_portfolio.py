"""The portfolio on every space that comes along, on backbones of several kinds."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from tiny_backbones import tiny_backbone

from autopeft import counting
from autopeft.api import problem as problems
from autopeft.backbone.anatomy import Anatomy
from autopeft.errors import SpaceError
from autopeft.searchers.base import Problem
from autopeft.searchers.portfolio import RECIPES, Use, portfolio, short_rate
from autopeft.searchers.registry import make_searcher
from autopeft.study.definition import parse_definition
from autopeft.study.records import Origin

FACTS = problems.Facts(0.25, 1.0, 99, 10_000, 500)
SPACES = ("quick", "lora", "mixed", "autopeft")
ARCHITECTURES = ("bert", "gpt2", "llama", "t5", "vit")


@cache
def anatomy(architecture: str) -> Anatomy:
    return tiny_backbone(architecture, torch.float32).anatomy


def problem(architecture: str, space: str | dict[str, Any], **blocks: Any) -> Problem:
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "d"}, "space": space} | blocks
    definition = parse_definition(plain, where="test", base=None)
    body = anatomy(architecture)
    bound = problems.bind_space(definition, body)
    return problems.make_problem(definition, body, bound, FACTS)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_space_and_backbone_has_entries_of_its_own(architecture: str, space: str) -> None:
    try:
        given = problem(architecture, space)
    except SpaceError:
        pytest.skip(f"{architecture} cannot carry {space}")
    entries = portfolio(given)
    assert len(entries) >= 3
    assert len({each.configuration.hash for each in entries}) == len(entries)
    for entry in entries:
        point = given.space.nearest(entry.configuration.to_dict())
        assert given.space.contains(point)
        assert given.build(point) == entry.configuration, "not in the space"
        assert given.feasible(entry.configuration)
        assert "arXiv" in entry.source
        assert entry.reason
    sizes = [given.known(each.configuration)["trainable_params"] for each in entries]
    assert max(sizes) > 3 * min(sizes)


def test_entries_are_what_their_sources_say() -> None:
    """By hand, for three layers of width 32."""
    found = {e.reason: e.configuration for e in portfolio(problem("bert", "mixed"))}
    groups = {reason.split()[0]: c.groups for reason, c in found.items()}
    lora = next(c.groups[0] for reason, c in found.items() if "rank 8" in reason)
    assert (lora.method, lora.layers, lora.sites) == ("lora", (1, 2), ("query", "value"))
    assert lora["rank"] == 8
    tiny = groups["rank"][0]
    assert (tiny.layers, tiny.sites, tiny["rank"]) == ((2,), ("query", "value"), 1)
    wide = groups["LoRA"] if groups["LoRA"][0]["rank"] == 32 else None
    assert wide is not None
    assert wide[0].sites == ("down", "query", "up", "value")
    assert wide[0].layers == (0, 1, 2)
    parallel = next(c for r, c in found.items() if "parallel to the FFN" in r)
    assert parallel.groups[0]["size"] == 2
    assert parallel.training_value("learning_rate") == 1e-2  # 1.4e-2, beyond the space
    assert found[next(iter(found))].training_value("learning_rate") == 7.2e-3  # rank 8


def test_rates_fall_with_size_and_width() -> None:
    """By hand: 7e-3 for rank 1 at width 384, the root of the size, the width's power 0.43."""
    narrow = replace(anatomy("bert"), hidden_size=384)
    wide = replace(narrow, hidden_size=768)
    assert [short_rate([Use("lora", r)], narrow) for r in (1, 4, 9)] == [7e-3, 3.5e-3, 2.3e-3]
    assert short_rate([Use("lora", 1)], wide) == 5.2e-3
    assert short_rate([Use("parallel_adapter", Fraction(3, 128))], narrow) == 2.3e-3  # 9 units
    assert short_rate([Use("prefix", 16)], narrow) == 7e-3
    mixed = [Use("prefix", 16), Use("parallel_adapter", 16)]
    assert short_rate(mixed, narrow) == 3.5e-3


def test_rates_stay_within_the_space_or_are_the_studys() -> None:
    low = {"methods": {"lora": {"rank": 8}}, "layers": {"mode": "last"}}
    rated = low | {"training": {"learning_rate": {"float": [1e-5, 1e-4], "log": True}}}
    (first, *_) = portfolio(problem("bert", rated))
    assert first.configuration.training_value("learning_rate") == 1e-4
    (first, *_) = portfolio(problem("bert", low))
    assert first.configuration.training_value("learning_rate") == 2e-4


LORA = {"rank": {"choice": [8]}, "sites": ["query", "value"], "layers": {"mode": "bits"}}


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, True),
        ({"rank": {"choice": [4]}}, True),
        ({"rank": {"choice": [3]}}, False),
        ({"rank": {"choice": [17]}}, False),
        ({"sites": ["query"]}, False),
        ({"sites": ["query", "value", "up"]}, True),
        ({"sites": ["query", "value", "up", "down"]}, False),
        ({"layers": [0, 1]}, False),
        ({"layers": [0, 1, 2]}, True),
    ],
)
def test_what_is_something_else_is_left_out(changes: dict[str, Any], held: bool) -> None:
    block = {"methods": {"lora": LORA | changes}}
    recipe = next(each for each in RECIPES if "rank 8" in each.reason)
    assert bool(portfolio(problem("bert", block), [recipe])) == held


def test_another_method_that_cannot_be_left_out_makes_it_something_else() -> None:
    block = {"methods": {"lora": LORA, "prefix": {"length": 4, "layers": [2]}}}
    assert not portfolio(problem("bert", block))


def test_caps_and_deploy_hold() -> None:
    cap = 500
    capped = [{"metric": "accuracy"}, {"metric": "trainable_params", "cap": cap}]
    entries = portfolio(problem("bert", "mixed", objectives=capped))
    assert entries
    body = anatomy("bert")
    assert all(counting.trainable_params(e.configuration, body) <= cap for e in entries)
    entries = portfolio(problem("bert", "mixed", deploy=["peft"]))
    assert {method for e in entries for method in e.configuration.methods} == {"lora"}


def start(searcher: str, n: int = 8, **search: Any) -> Sequence[Any]:
    given = problem("bert", "mixed", search={"initial": n, **search})
    return make_searcher(searcher, given).ask(n)


def test_gp_begins_with_entries_and_space_filling_ones_by_turns() -> None:
    entries = portfolio(problem("bert", "mixed"))
    proposals = start("gp")
    assert [p.configuration for p in proposals[::2]] == [e.configuration for e in entries[:4]]
    assert [dict(p.details) for p in proposals[::2]] == [
        {"reason": e.reason, "source": e.source} for e in entries[:4]
    ]
    assert {p.details["reason"] for p in proposals[1::2]} == {"space-filling start"}
    assert {p.origin for p in proposals} == {Origin.INITIAL}
    assert len({p.configuration.hash for p in proposals}) == 8


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_entries_are_at_most_half_of_the_start(n: int) -> None:
    sourced = [p for p in start("gp", n) if "source" in p.details]
    assert len(sourced) == n // 2


@pytest.mark.parametrize(
    ("searcher", "search"), [("gp", {"portfolio": False}), ("evolution", {}), ("random", {})]
)
def test_no_other_start_knows_the_portfolio(searcher: str, search: dict[str, Any]) -> None:
    assert not [p for p in start(searcher, **search) if "source" in p.details]


def test_an_entry_that_was_tried_already_is_not_proposed_again() -> None:
    given = problem("bert", "mixed", search={"initial": 8})
    tried = portfolio(given)[0].configuration
    proposals = make_searcher("gp", given).ask(7, pending=[tried])
    assert tried not in [p.configuration for p in proposals]
    assert len(proposals) == 7


def test_the_portfolio_is_a_function_of_the_problem() -> None:
    one, two = (problem("bert", "mixed", study={"seed": seed}) for seed in (1, 2))
    assert portfolio(one) == portfolio(one) == portfolio(two)
