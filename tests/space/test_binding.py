from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from made_up_rules import RULES

from autopeft.errors import Fault, SpaceError
from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, Shape
from autopeft.space.space import BoundSpace

Schemas = Mapping[str, MethodSchema]
Bind = Callable[..., BoundSpace]


def faults_of(block: Any, schemas: Schemas, shape: Shape) -> tuple[Fault, ...]:
    space = load_space(block, schemas=schemas, rules=RULES)
    with pytest.raises(SpaceError) as caught:
        space.bind(shape)
    return caught.value.faults


def test_all_that_the_backbone_lacks_at_once(schemas: Schemas, tiny: Shape) -> None:
    block = {
        "methods": {
            "lora": {"rank": 4, "sites": ["query", "gate"], "layers": [0, 3]},
            "prefix": {"length": 4},
            "serial_adapter": {"size": {"choice": ["1/8", "1/4"], "of": "hidden_sise"}},
        },
        "layers": [7],
    }
    faults = faults_of(
        block, schemas, replace(tiny, methods=frozenset({"lora", "serial_adapter"}))
    )
    assert {(fault.key, fault.given) for fault in faults} == {
        ("layers", "7"),
        ("methods.lora.sites", "gate"),
        ("methods.lora.layers", "3"),
        ("methods.prefix", "prefix"),
        ("methods.serial_adapter.size.of", "hidden_sise"),
    }
    assert "layers 0 to 2" in faults[0].allowed
    assert "write hidden_size" in faults[-1].hint


def test_default_sites_are_checked_too(schemas: Schemas, tiny: Shape) -> None:
    (fault,) = faults_of(
        {"methods": {"lora": {"rank": 4}}}, schemas, replace(tiny, roles=frozenset({"query"}))
    )
    assert (fault.key, fault.given, fault.allowed) == ("methods.lora.sites", "value", "query")


@pytest.mark.parametrize(
    ("choice", "kind", "values"),
    [
        ([True, "flat"], "category", (True, "flat")),
        (["steep_2", False], "category", ("steep_2", False)),
        ([True, False], "flag", (False, True)),
    ],
)
def test_names_beside_true_and_false_have_no_order(
    bound: Bind, choice: list[Any], kind: str, values: tuple[Any, ...]
) -> None:
    space = bound({"methods": {"vectors": {"start": {"choice": choice}}}})
    (dimension,) = (each for each in space.dimensions if each.name == "vectors.start")
    assert (dimension.kind, dimension.values) == (kind, values)
    assert all(dimension.decode(dimension.encode(value)) == value for value in choice)


def test_a_space_without_valid_configuration(schemas: Schemas, tiny: Shape) -> None:
    (fault,) = faults_of({"methods": {"lora": {"rank": 4, "present": False}}}, schemas, tiny)
    assert fault.given == "no valid configuration"


def test_sizes_that_become_illegal_on_the_backbone(schemas: Schemas, tiny: Shape) -> None:
    narrow = replace(schemas["lora"].parameters[0], maximum=8)
    lora = replace(schemas["lora"], parameters=(narrow, *schemas["lora"].parameters[1:]))
    block = {"methods": {"lora": {"rank": {"choice": ["1/4", 1], "of": "hidden_size"}}}}
    (fault,) = faults_of(block, {"lora": lora}, tiny)
    assert (fault.key, fault.given) == ("methods.lora.rank", "16")


@pytest.mark.parametrize(
    ("layers", "names", "distinct"),
    [
        ({"mode": "all"}, [], 1),
        ({"mode": "bits"}, ["layers.0", "layers.1", "layers.2"], 7),
        ({"mode": "range"}, ["layers.first", "layers.last"], 6),
        ({"mode": "last"}, ["layers.count"], 3),
        ([0, 2], [], 1),
    ],
)
def test_layer_modes(bound: Bind, layers: Any, names: list[str], distinct: int) -> None:
    own = bound({"methods": {"lora": {"rank": 4, "layers": layers}}})
    shared = bound({"methods": {"lora": {"rank": 4}}, "layers": layers})
    assert [dimension.name for dimension in own.dimensions] == [f"lora.{name}" for name in names]
    assert [dimension.name for dimension in shared.dimensions] == names
    assert own.distinct == shared.distinct == distinct


@pytest.mark.parametrize("mode", ["range", "last"])
def test_a_single_layer_leaves_no_choice(bound: Bind, tiny: Shape, mode: str) -> None:
    block = {"methods": {"lora": {"rank": 4}}, "layers": {"mode": mode}}
    space = bound(block, replace(tiny, n_layers=1))
    assert space.dimensions == ()
    assert space.assignment({})["lora"][0]["layers"] == [0]


def test_layers_are_all_unless_said_otherwise(bound: Bind) -> None:
    space = bound({"methods": {"lora": {"rank": 4}}})
    assert space.assignment({})["lora"] == [
        {
            "layers": [0, 1, 2],
            "sites": ["query", "value"],
            "rank": 4,
            "alpha": 16.0,
            "dropout": 0.0,
        }
    ]
