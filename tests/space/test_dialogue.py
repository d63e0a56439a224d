"""Points asked for one by one, and points read off configurations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from made_up_spaces import (
    SHARED_BESIDE_OWN,
    SHARED_WITHOUT_SWITCH,
    blocks,
    configuration,
    every_raw_point,
)

from autopeft.configuration import Configuration, Group
from autopeft.errors import SpaceError
from autopeft.space.space import BoundSpace

Bind = Callable[..., BoundSpace]
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
MIXED = {
    "methods": {
        "lora": {
            "rank": {"choice": [0, 4, 8]},
            "alpha_over_rank": {"choice": [0.1, 2]},
            "sites": {"subset": ["query", "up"]},
            "layers": {"mode": "bits"},
        },
        "prefix": {
            "present": {"choice": [True, False]},
            "length": 2,
            "reparametrise": {"choice": [True, False]},
            "hidden": {"choice": [4, 8]},
            "layers": {"mode": "range"},
        },
    },
    "training": {"learning_rate": {"float": [1e-4, 1e-2], "log": True}},
}


@given(block=blocks(), data=st.data())
@example(block=SHARED_BESIDE_OWN, data=None)
@example(block=SHARED_WITHOUT_SWITCH, data=None)
@settings(max_examples=40, deadline=None)
def test_answers_lead_to_the_point_of_the_same_values(
    bound: Bind, block: dict[str, Any], data: st.DataObject | None
) -> None:
    space = bound(block)
    assume(space.cardinality <= 300)
    for raw in every_raw_point(space):
        point, answers = space.dialogue(lambda dimension, raw=raw: raw[dimension.name])
        assert point == space.canonical(raw)
        assert answers.items() <= raw.items()
        shortest = space.answers(point)
        assert point.items() <= shortest.items()
        again, asked = space.dialogue(lambda dimension, short=shortest: short[dimension.name])
        assert (again, asked) == (point, shortest)


def test_what_is_off_is_not_asked_for(bound: Bind) -> None:
    space = bound(MIXED)
    values = {"lora.rank": 0, "prefix.present": False, "training.learning_rate": 1e-3}
    point, answers = space.dialogue(lambda dimension: values[dimension.name])
    assert list(answers) == list(values)
    assert point == {"training.learning_rate": 1e-3}
    assert not space.contains(point)


def test_what_a_method_needs_is_asked_for_once_it_is_on(bound: Bind) -> None:
    space = bound(MIXED)
    values = {
        "lora.rank": 8,
        "lora.sites.query": False,
        "lora.sites.up": False,
        "prefix.present": True,
        "prefix.layers.first": 2,
        "prefix.layers.last": 1,
        "prefix.reparametrise": True,
        "prefix.hidden": 8,
        "training.learning_rate": 1e-3,
    }
    point, answers = space.dialogue(lambda dimension: values[dimension.name])
    assert answers == values
    assert "lora.rank" not in point
    assert space.answers(point) == {
        "lora.rank": 0,
        **{name: values[name] for name in values if not name.startswith("lora")},
        "prefix.layers.first": 1,
        "prefix.layers.last": 2,
    }


def test_an_answer_that_is_not_legal_is_refused(bound: Bind) -> None:
    with pytest.raises(SpaceError):
        bound(MIXED).dialogue(lambda dimension: 3)


@given(block=blocks())
@example(block=SHARED_BESIDE_OWN)
@example(block=SHARED_WITHOUT_SWITCH)
@settings(max_examples=40, deadline=None)
def test_every_configuration_gives_its_point_back(bound: Bind, block: dict[str, Any]) -> None:
    space = bound(block)
    assume(space.cardinality <= 300)
    for raw in every_raw_point(space):
        point = space.canonical(raw)
        if space.contains(point):
            assert space.nearest(configuration(space, point).to_dict()) == point


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_reals_come_back_exactly(bound: Bind, seed: int) -> None:
    space = bound(MIXED)
    point = space.sample(np.random.default_rng(seed))
    assert space.nearest(configuration(space, point).to_dict()) == point


LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}


@pytest.mark.parametrize(
    ("groups", "training"),
    [
        ([Group.of("lora", [0], ["query"], **LORA | {"rank": 5})], {}),
        ([Group.of("lora", [0], ["query"], **LORA | {"alpha": 7.0})], {}),
        ([Group.of("lora", [0], ["query"], **LORA | {"dropout": 0.1})], {}),
        ([Group.of("lora", [0], ["value"], **LORA)], {}),
        ([Group.of("lora", [0], ["query"], **LORA, extra=1)], {}),
        ([Group.of("lora", [7], ["query"], **LORA)], {}),
        ([Group.of("lora", [0], ["query"], **LORA | {"alpha": "8"})], {}),
        (
            [
                Group.of("lora", [0], ["query"], **LORA),
                Group.of("lora", [1], ["query"], **LORA | {"rank": 8, "alpha": 16.0}),
            ],
            {},
        ),
        ([Group.of("prefix", [0, 2], length=2, reparametrise=False)], {}),
        ([Group.of("prefix", [0], length=2, reparametrise=False, hidden=4)], {}),
        ([Group.of("prefix", [0], length=2, reparametrise=True)], {}),
        ([Group.of("ia3", [0])], {}),
        ([Group.of("lora", [0], ["query"], **LORA)], {"learning_rate": 0.5}),
        ([], {}),
    ],
)
def test_what_lies_outside_has_no_point(
    bound: Bind, groups: list[Group], training: dict[str, float]
) -> None:
    space = bound(MIXED)
    outside = Configuration.of(groups, training=TRAINING | training)
    point = space.nearest(outside.to_dict())
    assert point is None or configuration(space, point) != outside


def test_the_same_within_the_space_has_one(bound: Bind) -> None:
    inside = Configuration.of([Group.of("lora", [0], ["query"], **LORA)], training=TRAINING)
    found = bound(MIXED).nearest(inside.to_dict())
    assert found is not None
    assert configuration(bound(MIXED), found) == inside
