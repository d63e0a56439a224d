"""Points, encoding, counts and neighbourhoods, on spaces that Hypothesis makes up."""

import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from made_up_rules import RULES
from made_up_spaces import (
    EXCLUSIVE_BESIDE_OTHERS,
    SHARED_BESIDE_OWN,
    SHARED_WITHOUT_SWITCH,
    TRAINING,
    blocks,
    configuration,
    every_raw_point,
)

from autopeft.configuration import Configuration
from autopeft.errors import SpaceError
from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, Scalar, Shape
from autopeft.space.space import BoundSpace, Point

Bind = Callable[..., BoundSpace]


@given(block=blocks())
@example(block=EXCLUSIVE_BESIDE_OTHERS)
@example(block=SHARED_WITHOUT_SWITCH)
@settings(max_examples=30, deadline=None)
def test_counts_equal_enumeration(bound: Bind, block: dict[str, Any]) -> None:
    space = bound(block)
    assume(space.cardinality <= 1000)
    raw_points = every_raw_point(space)
    assert space.cardinality == len(raw_points)
    points = [space.canonical(raw) for raw in raw_points]
    valid = {tuple(point.items()) for point in points if space.contains(point)}
    hashes = {configuration(space, dict(point)).hash for point in valid}
    assert space.distinct == len(valid) == len(hashes)


@given(block=blocks(), seed=st.integers(0, 2**32))
@example(block=EXCLUSIVE_BESIDE_OTHERS, seed=0)
@example(block=SHARED_WITHOUT_SWITCH, seed=0)
@settings(max_examples=30, deadline=None)
def test_samples_are_valid_and_survive_encoding(
    bound: Bind, block: dict[str, Any], seed: int
) -> None:
    space = bound(block)
    point = space.sample(np.random.default_rng(seed))
    assert space.contains(point)
    assert space.canonical(point) == point
    vector = space.encode(point)
    assert vector.shape == (len(space.dimensions),)
    assert vector.dtype == np.float64
    assert ((vector >= 0) & (vector <= 1)).all()
    assert space.decode(vector) == point


@given(block=blocks(), seed=st.integers(0, 2**32))
@example(block=SHARED_BESIDE_OWN, seed=0)
@example(block=EXCLUSIVE_BESIDE_OTHERS, seed=0)
@example(block=SHARED_WITHOUT_SWITCH, seed=0)
@settings(max_examples=60, deadline=None)
def test_the_point_nearest_to_a_configuration_of_the_space_is_its_own(
    bound: Bind, block: dict[str, Any], seed: int
) -> None:
    space = bound(block)
    point = space.sample(np.random.default_rng(seed))
    assert space.nearest(configuration(space, point).to_dict()) == point


@given(block=blocks(), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_vector_decodes_to_a_canonical_point(
    bound: Bind, block: dict[str, Any], data: st.DataObject
) -> None:
    space = bound(block)
    place = st.floats(0.0, 1.0)
    d = len(space.dimensions)
    vector = np.array(data.draw(st.lists(place, min_size=d, max_size=d)))
    point = space.decode(vector)
    assert space.canonical(point) == point
    if space.contains(point):
        assert space.decode(space.encode(point)) == point


@given(block=blocks(), seed=st.integers(0, 2**32))
@example(block=EXCLUSIVE_BESIDE_OTHERS, seed=0)
@example(block=SHARED_WITHOUT_SWITCH, seed=0)
@settings(max_examples=30, deadline=None)
def test_neighbours_are_valid_and_different(bound: Bind, block: dict[str, Any], seed: int) -> None:
    space = bound(block)
    rng = np.random.default_rng(seed)
    point = space.sample(rng)
    found = space.neighbours(point, rng, 5)
    assert len(found) <= 5
    assert all(space.contains(neighbour) for neighbour in found)
    different = {tuple(sorted(neighbour.items())) for neighbour in [point, *found]}
    assert len(different) == len(found) + 1


@given(block=blocks(), seed=st.integers(0, 2**32))
@example(block=SHARED_BESIDE_OWN, seed=0)
@example(block=SHARED_WITHOUT_SWITCH, seed=0)
@settings(max_examples=15, deadline=None)
def test_neighbours_reach_the_whole_space(bound: Bind, block: dict[str, Any], seed: int) -> None:
    alone = {name: {**own, "training": {}} for name, own in block["methods"].items()}
    space = bound(block | {"methods": alone, "training": {}})
    assume(space.distinct <= 30 and not space.continuous)
    rng = np.random.default_rng(seed)
    reached = [space.sample(rng)]
    for point in reached:
        for neighbour in space.neighbours(point, rng, 40):
            if neighbour not in reached:
                reached.append(neighbour)
    assert len(reached) == space.distinct


def _weight(space: BoundSpace, point: Point) -> float:
    """What every parameter count grows with: layers, sites and size of each method."""
    return sum(
        len(group["layers"]) * max(len(group.get("sites", ())), 1) * part.size
        for part in space.layout.parts(point)
        for group in part.to_dicts()
    )


def _sized(space: BoundSpace) -> list[Any]:
    return [method for method in space.layout.methods if method.size_dimension]


@given(block=blocks())
@example(block=EXCLUSIVE_BESIDE_OTHERS)
@example(block=SHARED_WITHOUT_SWITCH)
@settings(max_examples=30, deadline=None)
def test_extremes_bound_every_configuration(bound: Bind, block: dict[str, Any]) -> None:
    space = bound(block)
    assume(space.cardinality <= 1000)
    assume(not any(method.size_dimension.continuous for method in _sized(space)))
    points = [space.canonical(raw) for raw in every_raw_point(space)]
    weights = [_weight(space, point) for point in points if space.contains(point)]
    smallest = space.smallest()
    assert all(space.contains(point) for point in [space.largest(), *smallest])
    largest = space.largest_by_method()
    assert largest[0] == space.largest()
    assert max(_weight(space, point) for point in largest) == max(weights)
    assert min(_weight(space, point) for point in smallest) == min(weights)


@given(block=blocks(), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_assignments_are_configurations(bound: Bind, block: dict[str, Any], seed: int) -> None:
    space = bound(block)
    point = space.sample(np.random.default_rng(seed))
    plain = space.assignment(point)
    made = configuration(space, point)
    methods = {name: plain[name] for name in plain if name not in ("sparsity", "training")}
    for groups in methods.values():
        for group in groups:
            group.get("sites", []).sort()
        groups.sort(key=lambda group: (group["layers"], group.get("sites")))
    options = {
        name: value
        for name, value in plain["training"].items()
        if name in TRAINING or (value and (name, value) != ("density_epsilon", 1e-7))
    }
    training = {"training": TRAINING | options}
    assert made.to_dict() == methods | {"sparsity": plain["sparsity"]} | training
    assert Configuration.from_dict(made.to_dict()).hash == made.hash
    lora = plain.get("lora")
    if lora:
        assert type(lora[0]["rank"]) is int
        assert lora[0]["alpha"] / lora[0]["rank"] in (1.0, 2.0)
    prefix = plain.get("prefix")
    if prefix:
        assert ("hidden" in prefix[0]) == prefix[0]["reparametrise"]


def test_an_assignment_written_out(bound: Bind) -> None:
    space = bound(
        {
            "methods": {
                "lora": {
                    "rank": {"choice": [4, 8]},
                    "alpha_over_rank": 2,
                    "dropout": 0.05,
                    "sites": {"subset": ["value", "query", "up"]},
                    "layers": {"mode": "range"},
                },
                "prefix": {"length": {"choice": [0, 2]}, "layers": [2]},
            },
            "training": {"learning_rate": 0.001},
        }
    )
    assert [dimension.name for dimension in space.dimensions] == [
        "lora.rank",
        "lora.sites.query",
        "lora.sites.value",
        "lora.sites.up",
        "lora.layers.first",
        "lora.layers.last",
        "prefix.length",
    ]
    point = {
        "lora.rank": 8,
        "lora.sites.query": True,
        "lora.sites.value": True,
        "lora.sites.up": False,
        "lora.layers.first": 1,
        "lora.layers.last": 2,
    }
    assert space.contains(point)
    assert space.assignment(point) == {
        "lora": [
            {
                "layers": [1, 2],
                "sites": ["query", "value"],
                "rank": 8,
                "alpha": 16.0,
                "dropout": 0.05,
            }
        ],
        "sparsity": {"rule": "none"},
        "training": {"learning_rate": 0.001},
    }
    # The ends of a range in the other order, and a length of 0, mean the same.
    other = point | {"lora.layers.first": 2, "lora.layers.last": 1, "prefix.length": 0}
    assert not space.contains(other)
    assert space.canonical(other) == point


def test_every_way_of_being_off_is_the_same_point(bound: Bind) -> None:
    space = bound(
        {
            "methods": {
                "lora": {
                    "present": {"choice": [True, False]},
                    "rank": {"choice": [0, 4]},
                    "alpha": 8,
                    "sites": {"subset": ["query"]},
                    "layers": {"mode": "bits"},
                },
                "prefix": {"length": 4, "layers": [0]},
            }
        }
    )
    on = {
        "lora.present": True,
        "lora.rank": 4,
        "lora.sites.query": True,
        **{f"lora.layers.{layer}": True for layer in range(3)},
    }
    assert space.canonical(on) == on
    off: list[dict[str, Scalar]] = [
        {"lora.present": False},
        {"lora.rank": 0},
        {"lora.sites.query": False},
        {f"lora.layers.{layer}": False for layer in range(3)},
    ]
    for change in off:
        assert space.canonical(on | change) == {}
    assert space.contains({})  # prefix has no choice: it is on in every point
    assert space.distinct == 1 + 7


def test_a_point_without_methods_is_not_valid(bound: Bind) -> None:
    space = bound({"methods": {"lora": {"rank": {"choice": [0, 4]}}}})
    assert not space.contains({})
    assert space.decode(np.zeros(1)) == {}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"lora.rnak": 4}, "write lora.rank"),
        ({"lora.rank": 5}, "lora.rank; got 5; allowed: 0, 4"),
        ({"lora.rank": 4}, "training.learning_rate; got no value"),
        ({"lora.rank": 4, "training.learning_rate": 1.0}, "0.0001 to 0.005"),
        ({"lora.rank": 4, "training.learning_rate": "x"}, "0.0001 to 0.005"),
    ],
)
def test_points_that_cannot_be(bound: Bind, raw: dict[str, Scalar], words: str) -> None:
    space = bound(
        {
            "methods": {"lora": {"rank": {"choice": [0, 4]}}},
            "training": {"learning_rate": {"float": [1e-4, 5e-3], "log": True}},
        }
    )
    assert not space.contains(raw)
    with pytest.raises(SpaceError, match=words.replace(".", r"\.")):
        space.canonical(raw)


def test_the_published_space(bound: Bind, bert_base: Shape) -> None:
    space = bound("autopeft", bert_base)
    assert len(space.dimensions) == 15
    assert space.cardinality == 5_451_776
    assert space.distinct == 5_446_350
    assert space.continuous == 0
    sizes = (0, 1, 3, 6, 12, 24, 48, 96, 192, 384, 768)
    assert [tuple(dimension.values) for dimension in space.dimensions[:3]] == [sizes] * 3
    (adapter,) = space.assignment(space.largest())["parallel_adapter"]
    assert (adapter["scale"], adapter["activation"], adapter["sites"]) == (4.0, "relu", ["ffn"])
    (prefix,) = space.assignment(space.largest())["prefix"]
    assert (prefix["reparametrise"], prefix["hidden"], prefix["length"]) == (True, 800, 768)


def test_samples_of_the_published_space_favour_small_budgets(
    bound: Bind, bert_base: Shape
) -> None:
    space = bound("autopeft", bert_base)
    rng = np.random.default_rng(0)
    shares = [2 * 768 * _weight(space, space.sample(rng)) / 110e6 for _ in range(1000)]
    low, median, high = np.quantile(shares, [0.05, 0.5, 0.95])
    assert median < 0.014
    assert math.log10(high / low) > 2


def test_samples_favour_few_methods_and_any_number_of_layers(
    bound: Bind, bert_base: Shape
) -> None:
    space = bound("autopeft", bert_base)
    rng = np.random.default_rng(0)
    parts = [space.layout.parts(space.sample(rng)) for _ in range(1000)]
    n_methods = [len(on) for on in parts]
    assert n_methods.count(1) > 1.5 * n_methods.count(2) > 1.5 * n_methods.count(3) > 0
    n_layers = [len(on[0].layers) for on in parts]
    assert all(50 < n_layers.count(n) < 120 for n in range(1, 13))


def test_neighbours_of_layer_bits_move_blocks(bound: Bind, minilm: Shape) -> None:
    space = bound({"methods": {"lora": {"rank": 4}}, "layers": {"mode": "bits"}}, minilm)
    point = space.canonical({f"layers.{layer}": layer in (0, 2, 3) for layer in range(6)})
    seen = space.neighbours(point, np.random.default_rng(0), 20)
    layers = {space.layout.parts(neighbour)[0].layers for neighbour in seen}
    toggled = {(2, 3), (0, 1, 2, 3), (0, 3), (0, 2), (0, 2, 3, 4), (0, 2, 3, 5)}
    moved = {(1, 2, 3), (0, 3, 4), (0, 1, 2)}
    assert layers == toggled | moved


def test_equal_sizes_are_merged(bound: Bind, minilm: Shape) -> None:
    space = bound("autopeft", minilm)
    assert space.dimensions[0].values == (0, 1, 3, 6, 12, 24, 48, 96, 192, 384)


def test_sampling_and_neighbours_follow_the_seed(bound: Bind, minilm: Shape) -> None:
    space = bound("mixed", minilm)
    runs = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        point = space.sample(rng)
        runs.append([point, *space.neighbours(point, rng, 8)])
    assert runs[0] == runs[1]


def test_neighbours_make_every_kind_of_move(bound: Bind, minilm: Shape) -> None:
    space = bound("mixed", minilm)
    point = space.canonical(
        {
            "lora.rank": 8,
            "lora.sites.query": True,
            "lora.sites.value": True,
            "lora.layers.first": 2,
            "lora.layers.last": 3,
            "training.learning_rate": 1e-3,
        }
    )
    seen = space.neighbours(point, np.random.default_rng(0), 300)
    methods = [
        {part.method.name: part for part in space.layout.parts(neighbour)} for neighbour in seen
    ]
    assert any(parts.keys() == {"lora", "prefix"} for parts in methods)
    swapped = [parts["serial_adapter"] for parts in methods if parts.keys() == {"serial_adapter"}]
    assert {part.size for part in swapped} == {6}  # of 1, 3, 6, 12, ... closest to 8 by ratio
    assert {part.layers for part in swapped} == {(2, 3)}
    alone = [parts["lora"] for parts in methods if parts.keys() == {"lora"}]
    assert {4, 16} <= {part.size for part in alone}
    assert {(1, 2), (3, 4), (2,), (3,), (1, 2, 3), (2, 3, 4)} <= {part.layers for part in alone}
    assert {("query",), ("value",), ("query", "value", "up")} <= {part.sites for part in alone}
    rates = [neighbour["training.learning_rate"] for neighbour in seen]
    assert any(rate != 1e-3 for rate in rates)


def test_the_hash_is_that_of_what_is_allowed(
    schemas: Mapping[str, MethodSchema], minilm: Shape, bert_base: Shape
) -> None:
    methods = {"lora": {"rank": {"choice": [8, 4]}}, "prefix": {"length": {"choice": [0, 2]}}}
    reordered = {"prefix": {"length": {"choice": [2, 0]}}, "lora": {"rank": {"choice": [4, 8]}}}
    one, two = (
        load_space({"methods": block}, schemas=schemas, rules=RULES).bind(minilm)
        for block in (methods, reordered)
    )
    assert one.hash == two.hash
    assert one.to_dict() == two.to_dict()
    wider = load_space({"methods": methods}, schemas=schemas, rules=RULES).bind(bert_base)
    other = load_space(
        {"methods": methods | {"prefix": {"length": {"choice": [0, 3]}}}},
        schemas=schemas,
        rules=RULES,
    ).bind(minilm)
    assert len({one.hash, wider.hash, other.hash}) == 3


def test_the_hash_is_stable_across_processes(bound: Bind) -> None:
    space = bound("mixed")
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer).hash)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(space),
        capture_output=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert result.stdout.decode().strip() == space.hash
    assert pickle.loads(pickle.dumps(space)) == space
