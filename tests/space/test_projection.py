"""The nearest point: exact where the space holds a configuration, near where it does not."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from autopeft.configuration import Configuration
from autopeft.space.schema import Shape
from autopeft.space.space import BoundSpace

Bind = Callable[..., BoundSpace]

LORA = {
    "methods": {
        "lora": {
            "rank": {"choice": [0, 1, 4, 16]},
            "alpha_over_rank": {"choice": [1, 2]},
            "dropout": {"choice": [0.0, 0.1]},
            "sites": {"subset": ["query", "up"]},
            "layers": {"mode": "range"},
        },
        "serial_adapter": {
            "size": {"choice": [0, "1/8", "1/2"], "of": "hidden_size"},
            "activation": {"choice": ["gelu", "tanh"]},
            "layers": {"mode": "last"},
        },
    },
    "training": {"learning_rate": {"float": [1e-4, 1e-2], "log": True}},
}
"""On three layers of width 16."""


@pytest.mark.parametrize("name", ["autopeft", "importance", "lora", "mixed", "quick"])
def test_the_spaces_that_come_along_hold_their_own(
    bound: Bind, bert_base: Shape, name: str
) -> None:
    space = bound(name, bert_base)
    rng = np.random.default_rng(0)
    for _ in range(50):
        point = space.sample(rng)
        plain = space.assignment(point)
        training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
        whole = Configuration.from_dict(plain | {"training": training | plain["training"]})
        assert space.nearest(whole.to_dict()) == point


def near(space: BoundSpace, **plain: Any) -> Mapping[str, Any]:
    point = space.nearest({"training": {"learning_rate": 1e-3}, **plain})
    assert point is not None
    assert space.contains(point)
    return point


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (3, 4), (7, 4), (9, 16), (500, 16)])
def test_a_size_goes_to_the_nearest_by_ratio(bound: Bind, rank: int, expected: int) -> None:
    group = {"layers": [0], "sites": ["query"], "rank": rank, "alpha": 2 * rank, "dropout": 0.0}
    found = near(bound(LORA), lora=[group])
    assert found["lora.rank"] == expected
    assert found["lora.alpha_over_rank"] == 2


@pytest.mark.parametrize(
    ("layers", "block"),
    [([0, 1, 2], (0, 2)), ([1], (1, 1)), ([0, 2], (2, 2)), ([7], (2, 2)), ([0, 1, 9], (0, 1))],
)
def test_layers_go_to_the_block_that_differs_least(
    bound: Bind, layers: list[int], block: tuple[int, int]
) -> None:
    group = {"layers": layers, "sites": ["query"], "rank": 4, "alpha": 4, "dropout": 0.0}
    found = near(bound(LORA), lora=[group])
    assert (found["lora.layers.first"], found["lora.layers.last"]) == block


@pytest.mark.parametrize(("layers", "count"), [([0, 1, 2], 3), ([1, 2], 2), ([0], 1), ([1], 2)])
def test_layers_go_to_the_top_ones_that_differ_least(
    bound: Bind, layers: list[int], count: int
) -> None:
    found = near(bound(LORA), serial_adapter=[{"layers": layers, "size": 2}])
    assert found["serial_adapter.layers.count"] == count
    assert found["serial_adapter.activation"] == "gelu", "the default is not among the choices"


def test_missing_settings_are_defaults_and_real_values_are_clipped(bound: Bind) -> None:
    plain = {"lora": [{"layers": [1], "sites": ["up", "down"], "rank": 4}]}
    found = bound(LORA).nearest({**plain, "training": {"learning_rate": 5.0}})
    assert found is not None
    assert found["lora.dropout"] == 0.0
    assert (found["lora.sites.query"], found["lora.sites.up"]) == (False, True)
    assert found["training.learning_rate"] == 1e-2
    assert not [name for name in found if name.startswith("serial_adapter")]
    middle = bound(LORA).nearest(plain)
    assert middle is not None
    assert middle["training.learning_rate"] == pytest.approx(1e-3)


def test_groups_of_one_method_count_as_one(bound: Bind) -> None:
    groups = [
        {"layers": [0], "sites": ["query"], "rank": 1, "alpha": 1},
        {"layers": [1, 2], "sites": ["up"], "rank": 16, "alpha": 32},
    ]
    found = near(bound(LORA), lora=groups)
    assert found["lora.rank"] == 16
    assert (found["lora.layers.first"], found["lora.layers.last"]) == (0, 2)
    assert found["lora.sites.query"]
    assert found["lora.sites.up"]


@pytest.mark.parametrize(
    "plain",
    [
        {"prefix": [{"layers": [0], "length": 3}]},
        {"lora": [{"layers": [0], "sites": ["value"], "rank": 4, "alpha": 4}]},
    ],
)
def test_nothing_is_near_where_no_method_is_left(bound: Bind, plain: dict[str, Any]) -> None:
    assert bound(LORA).nearest(plain) is None


def test_a_method_that_cannot_be_off_is_at_its_smallest(bound: Bind) -> None:
    block = {
        "methods": {
            "lora": {"rank": {"choice": [2, 8]}, "sites": ["query"]},
            "prefix": {"length": {"choice": [0, 4]}, "layers": [2]},
        },
        "layers": {"mode": "last"},
    }
    found = bound(block).nearest({"prefix": [{"layers": [2], "length": 4}]})
    assert found == {"lora.rank": 2, "prefix.length": 4, "layers.count": 1}
