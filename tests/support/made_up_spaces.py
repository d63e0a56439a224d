"""Search spaces that Hypothesis makes up, and what their tests ask of them."""

import itertools
from typing import Any

from hypothesis import strategies as st

from autopeft.configuration import Configuration
from autopeft.space.schema import Scalar
from autopeft.space.space import BoundSpace, Point

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}

_ranked = st.sampled_from(
    [
        {"mode": "importance"},
        {"mode": "importance", "keep": {"choice": [1, 3, 8]}, "score": "sensitivity"},
        {"mode": "importance", "keep": 2},
    ]
)
_grouped = st.sampled_from(
    [
        {"mode": "groups", "pattern": "spafit-4-9", "groups": [2, 3]},
        {
            "mode": "groups",
            "pattern": {"choice": ["spafit-4-14", [1, 2]]},
            "groups": {"subset": [1, 2]},
        },
    ]
)
_layers = st.one_of(
    st.none(),
    st.sampled_from(["all", "bits", "range", "last", "shared"]).map(lambda mode: {"mode": mode}),
    _ranked,
    _grouped,
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


_pairs = st.fixed_dictionaries(
    {
        "sites": st.sampled_from([["query", "up"], ["down"]]),
        "layers": st.sampled_from([None, 2, {"choice": [1, 4]}]).map(
            lambda keep: {"mode": "importance", "of": "sites"} | ({"keep": keep} if keep else {})
        ),
    }
)
"""(layer, site) pairs in place of layers and sites."""

_densities = st.sampled_from([0.5, {"choice": [0, 0.01, 0.1]}, {"float": [0.001, 0.1]}])

_methods = st.fixed_dictionaries(
    {},
    optional={
        "lora": st.tuples(
            _method(
                "rank",
                sites=st.sampled_from([None, ["query"], {"subset": ["query", "up"]}]),
                alpha_over_rank=st.sampled_from([2, {"choice": [1, 2]}]),
            ),
            st.one_of(st.just({}), _pairs),
        ).map(lambda drawn: drawn[0] | drawn[1]),
        "sparse": _method(
            "density",
            sites=st.sampled_from([None, ["up"]]),
            granularity=st.sampled_from([None, {"choice": ["weight", "block"]}]),
        ).flatmap(lambda block: _densities.map(lambda density: block | {"density": density})),
        "serial_adapter": _method(
            "size", activation=st.sampled_from([None, {"choice": ["relu", "gelu"]}])
        ),
        "vectors": st.fixed_dictionaries(
            {
                "layers": _layers,
                "present": _present,
                "sites": st.sampled_from([None, {"subset": ["key", "value"]}]),
                "reads": st.sampled_from([None, {"choice": ["output", "input"]}]),
                "start": st.sampled_from(
                    [None, "steep_2", {"choice": [True, "flat"]}, {"choice": ["steep_9", False]}]
                ),
            }
        ).map(lambda block: {key: value for key, value in block.items() if value is not None}),
        "prefix": _method(
            "length",
            reparametrise=st.sampled_from([None, {"choice": [True, False]}]),
        ),
    },
).filter(bool)


def _sparsity(methods: set[str]) -> st.SearchStrategy[dict[str, Any] | None]:
    """Rules that one of the methods suits, or none at all."""
    options: list[dict[str, Any] | None] = [None, {"rule": "none"}, {"rule": "ist"}]
    options.append({"rule": {"choice": ["none", "ist"]}, "keep": {"float": [0.1, 0.5]}})
    if methods & {"lora", "serial_adapter"}:
        options.append({"rule": "spt", "budget": {"choice": [0.5, 1]}})
        options.append({"rule": {"choice": ["spt", "ist"]}, "interval": {"choice": [5, 10]}})
    if "lora" in methods:
        options.append(
            {
                "rule": {"choice": ["spt", "sparse"]},
                "score": {"choice": ["fisher", "random"]},
                "scope": {"choice": ["site", "global"]},
                "smallest": {"choice": [True, False]},
            }
        )
        options.append({"rule": {"choice": ["sparse", "none"]}, "scope": "global"})
    return st.sampled_from(options)


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
        modes = st.sampled_from(["all", "bits", "range", "last"])
        block["layers"] = draw(
            st.one_of(modes.map(lambda mode: {"mode": mode}), _ranked, _grouped)
        )
    if sparsity := draw(_sparsity(set(methods))):
        block["sparsity"] = sparsity
    block["training"] = draw(_training)
    if len(methods) > 1 and draw(st.booleans()):
        _exclude(block, draw)
    return block


_training = st.sampled_from(
    [
        {},
        {"learning_rate": {"float": [1e-4, 5e-3], "log": True}},
        {"weight_decay": {"choice": [0.0, 0.1]}, "warmup_ratio": {"float": [0.0, 0.3]}},
        {"ffn_masking": {"choice": [0, 0.1]}, "ffn_dropping": 0.1},
        {
            "density_weight": {"choice": [0, 0.5, 1.0]},
            "density_epsilon": {"choice": [1e-7, 1e-3]},
        },
    ]
)


def _exclude(block: dict[str, Any], draw: st.DrawFn) -> None:
    """Let some methods exclude each other, or all, which then may have training values."""
    methods = block["methods"]
    names = sorted(methods)
    some = draw(st.lists(st.sampled_from(names), min_size=2, unique=True))
    whole = len(some) == len(names)
    block["one_of"] = draw(st.sampled_from(["all", some])) if whole else some
    for name in some:
        methods[name] = {
            key: _positive(value) for key, value in methods[name].items() if key != "present"
        }
    if whole and draw(st.booleans()):
        block["training"] = {}
        for name in some[1:]:
            methods[name]["training"] = draw(_training)


def _positive(leaf: Any) -> Any:
    """A leaf without 0."""
    if not isinstance(leaf, dict):
        return leaf
    if "choice" in leaf:
        return leaf | {"choice": [each for each in leaf["choice"] if each != 0] or [1]}
    return leaf | {"int": [max(leaf["int"][0], 1), leaf["int"][1]]} if "int" in leaf else leaf


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


EXCLUSIVE_BESIDE_OTHERS = {
    "methods": {
        "lora": {"rank": {"choice": [4, 8]}},
        "vectors": {"layers": {"mode": "last"}},
        "prefix": {"length": {"choice": [0, 2]}},
    },
    "one_of": ["lora", "vectors"],
    "layers": {"mode": "last"},
}
"""One of two methods or neither, and another beside them; layers are shared or their own."""

SHARED_WITHOUT_SWITCH = {
    "methods": {"lora": {"rank": 4}, "prefix": {"length": 2, "layers": {"mode": "bits"}}},
    "layers": {"mode": "bits"},
}
"""Nothing but empty layers can switch these methods off."""
