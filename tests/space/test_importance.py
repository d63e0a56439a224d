"""Layers and sites chosen by importance, and sizes that are shares."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up_rules import RULES
from made_up_spaces import configuration

from autopeft.errors import SpaceError
from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, Ranking, Shape
from autopeft.space.space import BoundSpace

Bind = Callable[..., BoundSpace]

PAIRS = ((2, "up"), (0, "query"), (1, "up"), (2, "value"), (2, "query"), (0, "up"), (1, "query"))


@pytest.fixture
def measured(tiny: Shape) -> Shape:
    """Three layers: by Fisher the middle one first, by activations the lowest."""
    rankings = {"fisher": Ranking((1, 2, 0), PAIRS), "activation": Ranking((0, 1, 2), PAIRS[::-1])}
    return replace(tiny, rankings=rankings)


def lora(**layers: Any) -> dict[str, Any]:
    block = {"rank": 4, "sites": ["query", "up"], "layers": {"mode": "importance", **layers}}
    return {"methods": {"lora": block}}


def test_the_most_important_layers_come_first(bound: Bind, measured: Shape) -> None:
    space = bound(lora(), measured)
    assert [(each.name, list(each.values)) for each in space.dimensions] == [
        ("lora.layers.keep", [1, 2, 3])
    ]
    placed = [space.assignment({"lora.layers.keep": k})["lora"][0]["layers"] for k in (1, 2, 3)]
    assert placed == [[1], [1, 2], [0, 1, 2]]
    by_activation = bound(lora(score="activation"), measured)
    assert by_activation.assignment({"lora.layers.keep": 2})["lora"][0]["layers"] == [0, 1]
    assert space.distinct == space.cardinality == 3


def test_the_most_important_sites_make_a_group_per_set_of_sites(
    bound: Bind, measured: Shape
) -> None:
    space = bound(lora(of="sites", keep={"choice": [1, 3, 4]}), measured)
    groups = {
        k: [(g["layers"], g["sites"]) for g in space.assignment({"lora.layers.keep": k})["lora"]]
        for k in (1, 3, 4)
    }
    # (2, value) is not among the method's sites.
    assert groups == {
        1: [([2], ["up"])],
        3: [([0], ["query"]), ([1, 2], ["up"])],
        4: [([0], ["query"]), ([1], ["up"]), ([2], ["query", "up"])],
    }
    for k in (1, 3, 4):
        found = configuration(space, {"lora.layers.keep": k})
        assert space.nearest(found.to_dict()) == {"lora.layers.keep": k}


@pytest.mark.parametrize(
    ("keep", "values"),
    [(2, None), (9, None), ({"choice": [1, 9, 12]}, [1, 3]), ({"int": [2, 99]}, [2, 3])],
)
def test_more_than_there_are_means_all(
    bound: Bind, measured: Shape, keep: Any, values: list[int] | None
) -> None:
    space = bound(lora(keep=keep), measured)
    assert [list(each.values) for each in space.dimensions] == ([values] if values else [])
    (group,) = space.assignment(space.largest())["lora"]
    assert group["layers"] == ([1, 2] if keep == 2 else [0, 1, 2])


def test_shared_layers_may_be_ranked(bound: Bind, measured: Shape) -> None:
    methods = {"lora": {"rank": 4}, "prefix": {"length": {"choice": [0, 2]}}}
    space = bound({"methods": methods, "layers": {"mode": "importance"}}, measured)
    plain = space.assignment({"prefix.length": 2, "layers.keep": 2})
    assert plain["lora"][0]["layers"] == plain["prefix"][0]["layers"] == [1, 2]


def test_without_a_map_the_top_layers_stand_in(bound: Bind, tiny: Shape) -> None:
    unmeasured = replace(tiny, rankings={})
    space = bound(lora(score="taylor"), unmeasured)
    assert space.assignment({"lora.layers.keep": 2})["lora"][0]["layers"] == [1, 2]
    pairs = bound(lora(of="sites"), unmeasured)
    (group,) = pairs.assignment({"lora.layers.keep": 2})["lora"]
    assert (group["layers"], group["sites"]) == ([2], ["query", "up"])
    assert (pairs.distinct, space.distinct) == (6, 3)


def test_a_score_that_was_not_measured_is_refused(bound: Bind, measured: Shape) -> None:
    with pytest.raises(SpaceError) as caught:
        bound(lora(score="taylor"), measured)
    (fault,) = caught.value.faults
    assert (fault.key, fault.allowed) == ("methods.lora.layers.score", "activation, fisher")


def test_the_hash_is_of_the_ranking_too(bound: Bind, measured: Shape) -> None:
    other = replace(measured, rankings={"fisher": Ranking((2, 1, 0), PAIRS)})
    assert len({bound(lora(), shape).hash for shape in (measured, other)}) == 2
    last = {"methods": {"lora": {"rank": 4, "layers": {"mode": "last"}}}}
    assert bound(last, measured).hash == bound(last, other).hash


def test_neighbours_keep_one_more_or_fewer(bound: Bind, bert_base: Shape) -> None:
    order = (7, 3, 11, 0, 1, 2, 4, 5, 6, 8, 9, 10)
    shape = replace(bert_base, rankings={"fisher": Ranking(order, ())})
    space = bound({"methods": {"lora": {"rank": 4, "layers": {"mode": "importance"}}}}, shape)
    point = {"lora.layers.keep": 5}
    rng = np.random.default_rng(0)
    found = [space.neighbours(point, rng, 1) for _ in range(200)]
    steps = [near[0]["lora.layers.keep"] for near in found if near]
    near = sum(abs(int(k) - 5) == 1 for k in steps)
    assert 5 not in steps
    assert near > 140


def test_a_foreign_placement_goes_to_the_set_that_differs_least(
    bound: Bind, measured: Shape
) -> None:
    space = bound(lora(), measured)

    def kept(*layers: int) -> object:
        group = {"layers": list(layers), "sites": ["up"], "rank": 4}
        return (space.nearest({"lora": [group]}) or {})["lora.layers.keep"]

    assert [kept(1), kept(0), kept(1, 2), kept(0, 2), kept(0, 1, 2)] == [1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (lora(), True),
        ({"methods": {"lora": {"rank": 4}}}, False),
        ({"methods": {"lora": {"rank": 4}}, "layers": {"mode": "importance"}}, True),
        ({"methods": {"sparse": {"density": 0.1}}}, True),
        ({"methods": {"sparse": {"density": 0.1, "score": "random"}}}, False),
        (
            {"methods": {"sparse": {"density": 0.1, "score": {"choice": ["random", "fisher"]}}}},
            True,
        ),
        ({"methods": {"lora": {"rank": 4}}, "sparsity": {"rule": "ist"}}, False),
        (
            {"methods": {"lora": {"rank": 4}}, "sparsity": {"rule": {"choice": ["none", "spt"]}}},
            True,
        ),
        ({"methods": {"lora": {"rank": 4}}, "sparsity": {"rule": "sparse"}}, True),
        (
            {
                "methods": {"lora": {"rank": 4}},
                "sparsity": {"rule": "sparse", "score": "magnitude"},
            },
            False,
        ),
    ],
)
def test_a_space_says_whether_it_needs_a_map(
    schemas: Mapping[str, MethodSchema], block: dict[str, Any], expected: bool
) -> None:
    assert load_space(block, schemas=schemas, rules=RULES).measured is expected


# -- sizes that are shares ------------------------------------------------------------------------

DENSITIES = {
    "methods": {
        "sparse": {"density": {"choice": [0, 0.001, 0.01, 0.1]}, "sites": ["up"]},
        "lora": {"rank": {"choice": [0, 4, 16]}},
    }
}


def test_a_density_is_a_size(bound: Bind) -> None:
    space = bound(DENSITIES)
    point = space.canonical({"sparse.density": 0.01, "lora.rank": 0})
    assert point == {"sparse.density": 0.01}
    (part,) = space.layout.parts(point)
    assert (part.size, type(part.size)) == (0.01, float)
    assert space.distinct == 4 * 3 - 1
    assert space.nearest({"sparse": [{"layers": [0], "sites": ["up"], "density": 0.03}]}) == {
        "sparse.density": 0.01
    }
    sizes = [p["sparse.density"] for p in space.smallest() if "sparse.density" in p]
    assert set(sizes) == {0.001}
    assert space.largest()["sparse.density"] == 0.1


def test_densities_are_drawn_by_their_logarithm(bound: Bind) -> None:
    space = bound({"methods": {"sparse": {"density": {"float": [1e-4, 1e-1]}, "sites": ["up"]}}})
    rng = np.random.default_rng(0)
    drawn = np.log10([float(space.sample(rng)["sparse.density"]) for _ in range(600)])
    counts, _ = np.histogram(drawn, bins=[-4, -3, -2, -1])
    assert counts.sum() == 600
    assert counts.min() > 150


def test_a_rank_and_a_density_are_not_of_similar_size(bound: Bind) -> None:
    space = bound(DENSITIES)
    near = space.neighbours({"lora.rank": 16}, np.random.default_rng(0), 20)
    swapped = {p["sparse.density"] for p in near if "lora.rank" not in p}
    assert swapped == {0.001, 0.01, 0.1}
