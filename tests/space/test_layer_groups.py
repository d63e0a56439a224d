"""Groups of layers as the papers cut them, and placements made of them."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up_rules import RULES

from autopeft.errors import SpaceError
from autopeft.space.layer_groups import PATTERNS, group_sizes
from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, Shape
from autopeft.space.space import BoundSpace

Bind = Callable[..., BoundSpace]


def lora(**layers: Any) -> dict[str, Any]:
    return {"methods": {"lora": {"rank": 4, "layers": {"mode": "groups", **layers}}}}


@pytest.mark.parametrize(
    ("pattern", "n_layers", "sizes"),
    [
        ("uniform", 12, (3, 3, 3, 3)),
        ("increasing", 12, (1, 2, 4, 5)),  # N1 < N2 < N3 < N4
        ("decreasing", 12, (5, 4, 2, 1)),
        ("spindle", 12, (2, 4, 4, 2)),  # N1 < N2 = N3 > N4
        ("bottleneck", 12, (4, 2, 2, 4)),
        ("spindle", 24, (4, 8, 8, 4)),
        ("spafit-4-9", 24, (4, 5, 15)),  # BERT-large: 1-4 frozen, 5-9 biases, 10-24 LoRA
        ("spafit-4-14", 24, (4, 10, 10)),
        ("spafit-4-9", 12, (2, 2, 8)),
        ("spafit-4-14", 12, (2, 5, 5)),
        ("uniform", 6, (1, 1, 2, 2)),
        ("increasing", 6, (1, 1, 2, 2)),
        ("spindle", 6, (1, 2, 2, 1)),
        ("bottleneck", 6, (2, 1, 1, 2)),
        ("spafit-4-9", 6, (1, 1, 4)),
        ("spafit-4-14", 6, (1, 2, 3)),
        ("spindle", 7, (1, 2, 3, 1)),
        ("increasing", 7, (1, 1, 2, 3)),
        ("spafit-4-9", 3, (1, 1, 1)),
    ],
)
def test_the_papers_groups_at_any_depth(
    pattern: str, n_layers: int, sizes: tuple[int, ...]
) -> None:
    assert group_sizes(PATTERNS[pattern], n_layers) == sizes


@pytest.mark.parametrize("n_layers", range(4, 40))
def test_every_pattern_keeps_its_shape_and_all_layers(n_layers: int) -> None:
    for name, weights in PATTERNS.items():
        sizes = group_sizes(weights, n_layers)
        assert sum(sizes) == n_layers
        assert min(sizes) >= 1
        if name == "increasing":
            assert list(sizes) == sorted(sizes)
        if name == "spindle":
            assert max(sizes[0], sizes[3]) <= min(sizes[1], sizes[2])
        if name == "bottleneck":
            assert min(sizes[0], sizes[3]) >= max(sizes[1], sizes[2])


def test_strata_of_spafit_for_two_methods(bound: Bind, bert_base: Shape) -> None:
    strata = {"mode": "groups", "pattern": "spafit-4-9"}
    block = {
        "methods": {
            "lora": {"rank": 8, "layers": {**strata, "groups": [3]}},
            "vectors": {"layers": {**strata, "groups": [3, 2]}},
        }
    }
    space = bound(block, replace(bert_base, methods=frozenset({"lora", "vectors"})))
    assert space.dimensions == ()
    assert space.distinct == 1
    plain = space.assignment({})
    assert plain["lora"][0]["layers"] == list(range(4, 12))
    assert plain["vectors"][0]["layers"] == list(range(2, 12))


def test_sets_that_come_out_equal_count_once(bound: Bind, bert_base: Shape) -> None:
    block = lora(
        pattern={"choice": ["spindle", "uniform", [1, 1, 1, 3]]}, groups={"subset": [1, 2, 3, 4]}
    )
    space = bound(block, bert_base)
    bounds = [(0, 2, 6, 10, 12), (0, 3, 6, 9, 12), (0, 2, 4, 6, 12)]
    sets = {
        frozenset(layer for group in chosen for layer in range(cuts[group], cuts[group + 1]))
        for cuts in bounds
        for size in range(1, 5)
        for chosen in itertools.combinations(range(4), size)
    }
    assert len(sets) < 45
    assert space.distinct == space.cardinality == len(sets)
    (dimension,) = space.dimensions
    assert dimension.name == "lora.layers.groups"
    found = {
        frozenset(space.assignment({dimension.name: value})["lora"][0]["layers"])
        for value in dimension.values
    }
    assert found == sets
    largest = space.assignment(space.largest())["lora"][0]["layers"]
    assert largest == list(range(12))


def test_small_sets_are_drawn_as_often_as_large_ones(bound: Bind, bert_base: Shape) -> None:
    groups = {"choice": [[1], [2], [3], [4], [1, 2, 3, 4]]}
    space = bound(lora(pattern="uniform", groups=groups), bert_base)
    rng = np.random.default_rng(0)
    names = Counter(space.sample(rng)["lora.layers.groups"] for _ in range(400))
    assert 150 < names["uniform 1+2+3+4"] < 250
    near = space.neighbours({"lora.layers.groups": "uniform 1"}, rng, 10)
    assert 0 < len(near) <= 4
    foreign = {"lora": [{"layers": [3, 4], "sites": ["query"], "rank": 4}]}
    assert space.nearest(foreign) == {"lora.layers.groups": "uniform 2"}


@pytest.mark.parametrize(
    ("layers", "key", "said"),
    [
        ({"groups": [1]}, "methods.lora.layers.pattern", "null"),
        ({"pattern": "spindel", "groups": [1]}, "methods.lora.layers.pattern", "write spindle"),
        ({"pattern": [3], "groups": [1]}, "methods.lora.layers.pattern", "relative sizes"),
        ({"pattern": "spindle"}, "methods.lora.layers.groups", "groups 1 to 4"),
        ({"pattern": "spindle", "groups": [5]}, "methods.lora.layers.groups", "groups 1 to 4"),
        ({"pattern": "spafit-4-9", "groups": [[4]]}, "methods.lora.layers.groups", "1 to 3"),
        (
            {"pattern": "spindle", "groups": {"choice": [[1], [1]]}},
            "methods.lora.layers.groups",
            "each once",
        ),
        ({"pattern": "spindle", "of": "sites"}, "methods.lora.layers.of", "pattern, groups"),
    ],
)
def test_what_is_no_grouping_is_told(
    schemas: Mapping[str, MethodSchema], layers: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(lora(**layers), schemas=schemas, rules=RULES)
    fault = next(each for each in caught.value.faults if each.key == key)
    assert said in f"{fault.given} {fault.allowed} {fault.hint}"


def test_a_backbone_with_fewer_layers_than_groups(bound: Bind, tiny: Shape) -> None:
    with pytest.raises(SpaceError, match="at most 3 groups"):
        bound(lora(pattern="spindle", groups=[1]), tiny)
