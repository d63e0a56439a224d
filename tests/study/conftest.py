import pytest

from autopeft.space.schema import MethodSchema, ParameterSchema, Shape


@pytest.fixture(scope="session")
def schemas() -> dict[str, MethodSchema]:
    lora = MethodSchema(
        name="lora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=("query", "key", "value", "output", "up", "gate", "down"),
        default_sites=("query", "value"),
    )
    prefix = MethodSchema(
        name="prefix",
        size="length",
        parameters=(
            ParameterSchema("length", "int", minimum=1),
            ParameterSchema("reparametrise", "bool", default=False),
            ParameterSchema("hidden", "int", default=64, minimum=1, when=("reparametrise", True)),
        ),
    )
    adapter = MethodSchema(
        name="serial_adapter",
        size="size",
        parameters=(
            ParameterSchema("size", "int", minimum=1),
            ParameterSchema("activation", "str", default="relu", choices=("relu", "gelu")),
        ),
        sites=("attention", "ffn"),
        default_sites=("ffn",),
    )
    return {schema.name: schema for schema in (lora, prefix, adapter)}


@pytest.fixture(scope="session")
def shape() -> Shape:
    return Shape(
        n_layers=6,
        dimensions={"hidden_size": 32},
        roles=frozenset({"query", "key", "value", "output", "up", "down", "attention", "ffn"}),
        methods=frozenset({"lora", "serial_adapter"}),
    )
