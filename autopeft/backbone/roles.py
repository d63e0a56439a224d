"""Which linear map of a layer plays which role, told by its name and its place.

transformers names the same map `query`, `q_proj`, `q_lin` or `q`; some models fuse several maps in
one. Everything that depends on such names is in the tables of this file. The attention's output
and the FFN's maps may share a name (`c_proj`, `Wo`, `output.dense`), so the attention's part of
the layer is found first, from its query map, and the FFN is looked for outside it. A role whose
name fits several maps is left out: nothing is guessed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopeft.backbone.anatomy import Site

PROJECTION_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "query_proj", "q_proj", "q_lin", "q"),
    "key": ("key", "key_proj", "k_proj", "k_lin", "k"),
    "value": ("value", "value_proj", "v_proj", "v_lin", "v"),
}
OUTPUT_NAMES = ("output.dense", "out_proj", "o_proj", "out_lin", "o", "c_proj", "Wo", "dense")
FFN_NAMES: Mapping[str, tuple[str, ...]] = {
    "up": ("intermediate.dense", "fc1", "c_fc", "up_proj", "lin1", "wi", "wi_1", "fc_in"),
    "gate": ("gate_proj", "wi_0"),
    "down": ("output.dense", "fc2", "c_proj", "down_proj", "lin2", "wo", "Wo", "fc_out"),
}

FUSED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gpt2": {"attn.c_attn": ("query", "key", "value")},
    "modernbert": {
        "attn.Wqkv": ("query", "key", "value"),
        "mlp.Wi": ("gate", "up"),
    },
    "phi3": {
        "self_attn.qkv_proj": ("query", "key", "value"),
        "mlp.gate_up_proj": ("gate", "up"),
    },
}
"""Fused maps by `model_type`: the order of the slices. The gate is the half that is activated
(ModernBERT computes `act(first) * second`, Phi-3 `second * act(first)`). Keyed by model, since a
name alone does not tell the order: GPT-NeoX's `query_key_value` interleaves the heads."""


@dataclass(frozen=True)
class LinearMap:
    """One linear module of a model.

    Attributes:
        name: Its name within the base model.
        in_features: Width of its input.
        out_features: Width of its output.
        bias: Whether it has a bias.
        transposed: Whether the weight is stored as [in, out].
    """

    name: str
    in_features: int
    out_features: int
    bias: bool
    transposed: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.in_features} -> {self.out_features})"


@dataclass(frozen=True)
class Roles:
    """What was recognised in one layer.

    Attributes:
        sites: Sites by role.
        attention: The module that holds query, key and value, named within the layer, or "".
        rest: Linear maps outside the attention, named within the layer.
    """

    sites: Mapping[str, Site]
    attention: str
    rest: tuple[str, ...]


def find_roles(layer: int, maps: Mapping[str, LinearMap], model_type: str) -> Roles:
    """The roles of one layer's linear maps.

    Args:
        layer: The layer's index.
        maps: The layer's linear maps by their name within the layer.
        model_type: transformers' name of the architecture, for the fused maps.
    """
    fused = FUSED.get(model_type, {})
    projections = _projections(maps, fused)
    parents = {name.rpartition(".")[0] for name in projections.values()}
    if len(projections) < len(PROJECTION_NAMES) or len(parents) > 1 or parents == {""}:
        return Roles({}, "", tuple(maps))
    attention = parents.pop()
    scope, output = _output(maps, attention, set(projections.values()))
    if not output:
        return Roles({}, attention, tuple(maps))
    rest = tuple(name for name in maps if not name.startswith(f"{scope}."))
    sites = _attention_sites(layer, maps, projections, output)
    return Roles(sites | _ffn_sites(layer, maps, rest, fused), attention, rest)


def site_of(
    layer: int, role: str, linear: LinearMap, start: int = 0, width: int | None = None
) -> Site:
    """The site of one role on a linear map; `width` is given where the map is fused."""
    return Site(
        layer=layer,
        role=role,
        module=linear.name,
        in_features=linear.in_features,
        out_features=linear.out_features if width is None else width,
        start=start,
        fused=width is not None,
        transposed=linear.transposed,
        bias=linear.bias,
    )


def _named(names: Sequence[str], endings: Sequence[str]) -> str:
    """The only name that is, or ends with, one of the endings; "" where none or several do."""
    hits = [name for name in names if any(f".{name}".endswith(f".{ending}") for ending in endings)]
    return hits[0] if len(hits) == 1 else ""


def _projections(
    maps: Mapping[str, LinearMap], fused: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """The names of the query, key and value maps; one name thrice where they are fused."""
    names = tuple(maps)
    for ending, roles in fused.items():
        if "query" in roles and (name := _named(names, (ending,))):
            return dict.fromkeys(roles, name)
    found = {role: _named(names, endings) for role, endings in PROJECTION_NAMES.items()}
    return {role: name for role, name in found.items() if name}


def _ancestors(name: str) -> Iterator[str]:
    """The name and its parents, innermost first, without the layer itself."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _output(
    maps: Mapping[str, LinearMap], attention: str, projections: set[str]
) -> tuple[str, str]:
    """The attention's part of the layer and the name of its output map; "" where unclear."""
    for scope in _ancestors(attention):
        inside = [
            name for name in maps if name.startswith(f"{scope}.") and name not in projections
        ]
        if output := _named(inside, OUTPUT_NAMES):
            return scope, output
    return "", ""


def _attention_sites(
    layer: int, maps: Mapping[str, LinearMap], projections: Mapping[str, str], output: str
) -> dict[str, Site]:
    sites = {"output": site_of(layer, "output", maps[output])}
    if len(set(projections.values())) > 1:
        for role, name in projections.items():
            sites[role] = site_of(layer, role, maps[name])
        return sites
    linear = maps[projections["query"]]
    # All query heads feed the output map; key and value share what is left of the fused width.
    query_width = maps[output].in_features
    other_width = (linear.out_features - query_width) // 2
    start = 0
    for role in projections:
        width = query_width if role == "query" else other_width
        sites[role] = site_of(layer, role, linear, start, width)
        start += width
    return sites


def _ffn_sites(
    layer: int,
    maps: Mapping[str, LinearMap],
    rest: Sequence[str],
    fused: Mapping[str, tuple[str, ...]],
) -> dict[str, Site]:
    sites = {
        role: site_of(layer, role, maps[name])
        for role, endings in FFN_NAMES.items()
        if (name := _named(rest, endings))
    }
    for ending, roles in fused.items():
        if "up" in roles and (name := _named(rest, (ending,))):
            width = maps[name].out_features // len(roles)
            for position, role in enumerate(roles):
                sites[role] = site_of(layer, role, maps[name], position * width, width)
    return sites
