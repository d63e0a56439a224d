"""Method schemas and backbone shapes for the space's tests, written out as plain data."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from made_up_rules import RULES, SCORES

from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, ParameterSchema, Ranking, Shape
from autopeft.space.space import BoundSpace

LINEAR = ("query", "key", "value", "output", "up", "gate", "down")


def _dropout() -> ParameterSchema:
    return ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9)


def _adapter(name: str, scale: float) -> MethodSchema:
    return MethodSchema(
        name,
        "size",
        (
            ParameterSchema("size", "int", minimum=1),
            ParameterSchema(
                "activation", "str", default="relu", choices=("relu", "gelu", "tanh", "silu")
            ),
            ParameterSchema("scale", "float", default=scale),
            _dropout(),
        ),
        sites=("attention", "ffn"),
        default_sites=("ffn",),
    )


SCHEMAS = {
    schema.name: schema
    for schema in (
        MethodSchema(
            "lora",
            "rank",
            (
                ParameterSchema("rank", "int", minimum=1),
                ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
                _dropout(),
            ),
            sites=LINEAR,
            default_sites=("query", "value"),
        ),
        _adapter("serial_adapter", 1.0),
        _adapter("parallel_adapter", 4.0),
        MethodSchema(
            "sparse",
            "density",
            (
                ParameterSchema("density", "float", minimum=1e-6, maximum=1.0),
                ParameterSchema(
                    "granularity", "str", default="weight", choices=("weight", "input", "block")
                ),
                ParameterSchema("block", "int", default=4, when=("granularity", "block")),
                ParameterSchema(
                    "score",
                    "str",
                    default="fisher",
                    choices=SCORES,
                    measured=("fisher", "sensitivity"),
                ),
            ),
            sites=LINEAR,
            default_sites=("query", "value"),
        ),
        MethodSchema(
            "vectors",
            "",
            (
                ParameterSchema("reads", "str", default="output", choices=("output", "input")),
                ParameterSchema(
                    "start",
                    "bool|str",
                    default=True,
                    choices=("flat", "steep"),
                    numbered=("steep_",),
                    refused={"eva": "it needs the data", "flat_N": "it has no numbers"},
                    tacit=True,
                ),
            ),
            sites=LINEAR,
            default_sites=("key", "value"),
        ),
        MethodSchema(
            "prefix",
            "length",
            (
                ParameterSchema("length", "int", minimum=1),
                ParameterSchema("reparametrise", "bool", default=False),
                ParameterSchema(
                    "hidden", "int", default=800, minimum=1, when=("reparametrise", True)
                ),
            ),
        ),
    )
}

ROLES = frozenset(LINEAR) - {"gate"} | {"attention", "ffn"}


def shape(n_layers: int, hidden_size: int, **rankings: Ranking) -> Shape:
    dimensions = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size}
    return Shape(n_layers, dimensions, ROLES, frozenset(SCHEMAS), rankings)


def ranking(*layers: int) -> Ranking:
    """Layers in this order, and pairs that change between them: all down, then all up, ..."""
    return Ranking(layers, tuple((layer, role) for role in sorted(ROLES) for layer in layers))


@pytest.fixture(scope="session")
def schemas() -> Mapping[str, MethodSchema]:
    return SCHEMAS


@pytest.fixture(scope="session")
def bert_base() -> Shape:
    return shape(12, 768)


@pytest.fixture(scope="session")
def minilm() -> Shape:
    return shape(6, 384)


@pytest.fixture(scope="session")
def tiny() -> Shape:
    """Three layers, of which the middle one matters most."""
    return shape(3, 16, fisher=ranking(1, 2, 0), sensitivity=ranking(0, 2, 1))


@pytest.fixture(scope="session")
def bound(schemas: Mapping[str, MethodSchema], tiny: Shape) -> Callable[..., BoundSpace]:
    """An inline block or a named space, bound to the tiny shape or the one given."""

    def bind(source: Any, to: Shape = tiny) -> BoundSpace:
        return load_space(source, schemas=schemas, rules=RULES).bind(to)

    return bind
