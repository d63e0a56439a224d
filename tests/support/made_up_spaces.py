"""Search spaces that Hypothesis makes up, and what their tests ask of them."""

import itertools
from typing import Any

from hypothesis import strategies as st

from autopeft.configuration import Configuration
from autopeft.space.schema import Scalar
from autopeft.space.space import BoundSpace, Point

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}

_layers = st.one_of(
    st.none(),
    st.sampled_from(["all", "bits", "range", "last", "shared"]).map(lambda mode: {"mode": mode}),
    st.lists(st.integers(0, 2), min_size=1, unique=True),
)
_present = st.sampled_from([None, True, {"choice": [True, False]}])
_sizes = st.sampled_from(
    [
        4,
        {"choice": [0, 8]},
        {"choice": [2, 4]},
        {"choice": [0, "1/16", "1/8", 1], "of": "hidden_size"},
        {"int": [0, 3]},
        {"int": [1, 4], "log": True},
    ]
)


def _method(size: str, **others: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {size: _sizes, "layers": _layers, "present": _present, **others}
    return st.fixed_dictionaries(fields).map(
        lambda block: {key: value for key, value in block.items() if value is not None}
    )


_methods = st.fixed_dictionaries(
    {},
    optional={
        "lora": _method(
            "rank",
            sites=st.sampled_from([None, ["query"], {"subset": ["query", "up"]}]),
            alpha_over_rank=st.sampled_from([2, {"choice": [1, 2]}]),
        ),
        "serial_adapter": _method(
            "size", activation=st.sampled_from([None, {"choice": ["relu", "gelu"]}])
        ),
        "prefix": _method(
            "length",
            reparametrise=st.sampled_from([None, {"choice": [True, False]}]),
        ),
    },
).filter(bool)


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    """Inline blocks of small spaces, conditional parameters among them."""
    methods = draw(_methods)
    if methods.get("prefix", {}).get("reparametrise") and draw(st.booleans()):
        methods["prefix"]["hidden"] = {"choice": [4, 8]}
    block: dict[str, Any] = {"methods": methods}
    if any(
        method.get("layers", {"mode": "shared"}) == {"mode": "shared"}
        for method in methods.values()
    ):
        mode = draw(st.sampled_from(["all", "bits", "range", "last"]))
        block["layers"] = {"mode": mode}
    block["training"] = draw(
        st.sampled_from(
            [
                {},
                {"learning_rate": {"float": [1e-4, 5e-3], "log": True}},
                {"weight_decay": {"choice": [0.0, 0.1]}, "warmup_ratio": {"float": [0.0, 0.3]}},
            ]
        )
    )
    return block


SHARED_BESIDE_OWN = {
    "methods": {
        "lora": {"rank": {"choice": [0, 4]}},
        "prefix": {"length": {"choice": [0, 2]}, "layers": [0]},
    },
    "layers": {"mode": "bits"},
}
"""LoRA comes and goes with the shared layers while the prefix stays."""


def every_raw_point(space: BoundSpace) -> list[dict[str, Scalar]]:
    """All raw points; reals at their middle."""
    names = [dimension.name for dimension in space.dimensions]
    values = [
        [dimension.decode(0.5)] if dimension.continuous else list(dimension.values)
        for dimension in space.dimensions
    ]
    return [dict(zip(names, raw, strict=True)) for raw in itertools.product(*values)]


def configuration(space: BoundSpace, point: Point) -> Configuration:
    plain = space.assignment(point)
    return Configuration.from_dict(plain | {"training": TRAINING | plain["training"]})


SHARED_WITHOUT_SWITCH = {
    "methods": {"lora": {"rank": 4}, "prefix": {"length": 2, "layers": {"mode": "bits"}}},
    "layers": {"mode": "bits"},
}
"""Nothing but empty layers can switch these methods off."""
