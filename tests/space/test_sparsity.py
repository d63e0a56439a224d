"""Sparsity rules in a space: which rule a point has, and its parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_up_spaces import configuration

from autopeft.errors import SpaceError
from autopeft.space.schema import Shape
from autopeft.space.space import BoundSpace

Bind = Callable[..., BoundSpace]

METHODS = {
    "lora": {"rank": {"choice": [0, 4, 8]}},
    "prefix": {"length": {"choice": [0, 2]}},
}
RULES = {
    "rule": {"choice": ["spt", "none", "ist"]},
    "keep": {"choice": [0.25, 0.5]},
    "budget": {"choice": [0.5, 1.0]},
}


@pytest.fixture
def space(bound: Bind) -> BoundSpace:
    return bound({"methods": METHODS, "sparsity": RULES})


def test_only_the_chosen_rules_parameters_are_active(space: BoundSpace) -> None:
    assert [each.name for each in space.dimensions] == [
        "lora.rank",
        "prefix.length",
        "sparsity.rule",
        "sparsity.keep",
        "sparsity.budget",
    ]
    raw = {"lora.rank": 4, "prefix.length": 0, "sparsity.keep": 0.5, "sparsity.budget": 0.5}
    ist = space.canonical(raw | {"sparsity.rule": "ist"})
    assert ist == {"lora.rank": 4, "sparsity.rule": "ist", "sparsity.keep": 0.5}
    assert space.assignment(ist)["sparsity"] == {"rule": "ist", "keep": 0.5, "interval": 10}
    spt = space.canonical(raw | {"sparsity.rule": "spt"})
    assert space.assignment(spt)["sparsity"] == {
        "rule": "spt",
        "budget": 0.5,
        "threshold": 10.0,
        "score": "sensitivity",
    }
    none = space.canonical(raw | {"sparsity.rule": "none"})
    assert none == {"lora.rank": 4}
    assert space.assignment(none)["sparsity"] == {"rule": "none"}


def test_a_rule_without_its_method_is_none(space: BoundSpace) -> None:
    raw = {"prefix.length": 2, "lora.rank": 0, "sparsity.keep": 0.5, "sparsity.budget": 0.5}
    assert space.canonical(raw | {"sparsity.rule": "spt"}) == {"prefix.length": 2}
    assert space.contains({"prefix.length": 2})
    ist = space.canonical(raw | {"sparsity.rule": "ist"})
    assert ist["sparsity.rule"] == "ist"
    # LoRA alone: 2 x (none + 2 ist + 2 spt); prefix alone: none + 2 ist; both: as LoRA.
    assert space.distinct == 2 * 5 + 3 + 2 * 5


def test_a_rule_that_cannot_be_missing_must_be_given(bound: Bind) -> None:
    space = bound({"methods": METHODS, "sparsity": RULES | {"rule": {"choice": ["ist", "spt"]}}})
    with pytest.raises(SpaceError, match=r"sparsity\.rule; got no value"):
        space.canonical({"lora.rank": 4})
    # Beside a prefix alone, spt means nothing, so a point may be without a rule.
    assert space.contains({"prefix.length": 2})
    assert space.decode(space.encode({"prefix.length": 2})) == {"prefix.length": 2}
    assert space.distinct == 2 * 4 + (1 + 2) + 2 * 4


def test_one_rule_is_no_dimension(bound: Bind) -> None:
    space = bound({"methods": METHODS, "sparsity": {"rule": "spt", "budget": 0.5}})
    assert [each.name for each in space.dimensions] == ["lora.rank", "prefix.length"]
    assert space.assignment({"lora.rank": 4})["sparsity"]["rule"] == "spt"
    assert space.assignment({"prefix.length": 2})["sparsity"] == {"rule": "none"}


def test_no_rule_but_none_changes_nothing(bound: Bind) -> None:
    plain = bound({"methods": METHODS})
    for rule in ("none", {"choice": ["none"]}):
        again = bound({"methods": METHODS, "sparsity": {"rule": rule}})
        assert again.hash == plain.hash
        assert again.dimensions == plain.dimensions


def test_the_order_of_rules_does_not_matter_but_what_they_allow_does(bound: Bind) -> None:
    def made(**sparsity: Any) -> BoundSpace:
        return bound({"methods": METHODS, "sparsity": sparsity})

    one = made(**RULES)
    reordered = made(**RULES | {"rule": {"choice": ["ist", "spt", "none"]}})
    assert (one.hash, one.dimensions) == (reordered.hash, reordered.dimensions)
    others = [
        made(**RULES | {"rule": {"choice": ["ist", "spt"]}}),
        made(**RULES, threshold=5),
        made(**RULES | {"keep": 0.25}),
        bound({"methods": METHODS}),
    ]
    assert len({one.hash, *(other.hash for other in others)}) == 5


def test_a_dialogue_asks_for_a_rule_once_a_method_needs_one(space: BoundSpace) -> None:
    values = {"lora.rank": 4, "prefix.length": 0, "sparsity.rule": "ist", "sparsity.keep": 0.25}
    point, answers = space.dialogue(lambda dimension: values[dimension.name])
    assert answers == values
    assert space.answers(point) == values
    nothing = {"lora.rank": 0, "prefix.length": 0}
    assert space.dialogue(lambda dimension: nothing[dimension.name])[1] == nothing


def test_the_extremes_are_there_under_every_rule(space: BoundSpace) -> None:
    assert "sparsity.rule" not in space.largest()
    largest = space.largest_by_rule()
    assert [point.get("sparsity.rule") for point in largest] == [None, "ist", "spt"]
    assert largest[2]["sparsity.budget"] == 1.0
    smallest = space.smallest()
    found = {
        (p.get("lora.rank"), p.get("sparsity.rule"), p.get("sparsity.budget")) for p in smallest
    }
    assert {(4, None, None), (4, "spt", 0.5), (None, None, None), (None, "ist", None)} <= found
    assert (None, "spt", 0.5) not in found


def test_a_rule_from_elsewhere_becomes_none_where_it_can(space: BoundSpace, bound: Bind) -> None:
    group = {"lora": [{"layers": [0, 1, 2], "sites": ["query", "value"], "rank": 4}]}

    def found(where: BoundSpace, **sparsity: Any) -> dict[str, Any]:
        point = where.nearest(group | {"sparsity": sparsity})
        assert point is not None
        return {key: value for key, value in point.items() if key.startswith("sparsity")}

    assert found(space, rule="sparse") == {}
    assert found(space) == {}
    assert found(space, rule="ist", keep=0.3) == {"sparsity.rule": "ist", "sparsity.keep": 0.25}
    always = bound({"methods": METHODS, "sparsity": RULES | {"rule": {"choice": ["ist", "spt"]}}})
    assert found(always, rule="none") == {"sparsity.rule": "ist", "sparsity.keep": 0.25}


def test_neighbours_change_the_rule_and_its_parameters(space: BoundSpace) -> None:
    point = {"lora.rank": 4, "sparsity.rule": "ist", "sparsity.keep": 0.25}
    near = space.neighbours(point, np.random.default_rng(0), 40)
    assert {"lora.rank": 4} in near
    assert point | {"sparsity.keep": 0.5} in near
    assert {p.get("sparsity.budget") for p in near if p.get("sparsity.rule") == "spt"} == {
        0.5,
        1.0,
    }


def test_configurations_of_a_rule_come_back(space: BoundSpace) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        point = space.sample(rng)
        assert space.nearest(configuration(space, point).to_dict()) == point


@pytest.mark.parametrize(
    ("name", "small", "base"),
    [
        ("autopeft", "0bbc4aeb99fd7c66", "2a0c8140f8f6b002"),
        ("lora", "d14f490ad58efcd3", "60f140a2cde2ba27"),
        ("mixed", "0758e081ed6f77cd", "e228e276e05970d9"),
        ("quick", "d5334032c69382af", "698582858475edec"),
    ],
)
def test_spaces_from_before_there_were_rules_keep_their_hashes(
    bound: Bind, minilm: Shape, bert_base: Shape, name: str, small: str, base: str
) -> None:
    """Recorded tables and stored studies are keyed by them."""
    assert bound(name, minilm).hash == small
    assert bound(name, bert_base).hash == base
