"""Method schemas and backbone shapes for the space's tests, written out as plain data."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema, ParameterSchema, Shape
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


def shape(n_layers: int, hidden_size: int) -> Shape:
    dimensions = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size}
    return Shape(n_layers, dimensions, ROLES, frozenset(SCHEMAS))


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
    return shape(3, 16)


@pytest.fixture(scope="session")
def bound(schemas: Mapping[str, MethodSchema], tiny: Shape) -> Callable[..., BoundSpace]:
    """An inline block or a named space, bound to the tiny shape or the one given."""

    def bind(source: Any, to: Shape = tiny) -> BoundSpace:
        return load_space(source, schemas=schemas).bind(to)

    return bind
