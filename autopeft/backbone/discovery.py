"""Finds the layers and sites of a transformers base model by structure and role names.

The layer stack is the list of as many members as the configuration has layers; in each layer, the
roles come from the tables of `roles`. What is not understood is an error that shows what was
found and how to declare the sites, never a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy, Layer, Site
from autopeft.backbone.declared import declared_sites
from autopeft.backbone.embeddings import cache_argument, find_embeddings
from autopeft.backbone.layer_memory import layer_memory
from autopeft.backbone.norms import find_norms
from autopeft.backbone.roles import LinearMap, Roles, find_roles
from autopeft.backbone.structure import (
    Stack,
    attention_module,
    beyond_sdpa,
    has_routed_experts,
    is_causal,
    layer_stacks,
    linear_maps,
    n_parameters,
)
from autopeft.errors import BackboneError, Fault

ATTENTION_ROLES = ("query", "key", "value", "output")
FFN_ROLES = ("up", "gate", "down")
MODALITIES = {"input_ids": "text", "pixel_values": "image"}
_MAX_LISTED = 24


def discover(model: nn.Module, config: Any, *, sites: Mapping[str, str] | None = None) -> Anatomy:
    """The anatomy of a base model (not of a `...For<Task>` class); reads names and shapes only.

    Args:
        model: A transformers base model, on any device.
        config: Its `PretrainedConfig`.
        sites: Regular expressions by role, for an architecture that is not recognised; they
            replace the built-in role names.

    Raises:
        BackboneError: The layers or roles are not recognised (the message lists what was found),
            or the declared sites do not fit.
    """
    layers = _declared_layers(model, sites) if sites else _found_layers(model, config)
    heads = _heads(config, layers)
    first = layers[0].sites
    hidden_size = first["query"].in_features if "query" in first else _width(config, "hidden_size")
    inner_size = getattr(config, "intermediate_size", None) or hidden_size
    why_not = _why_not_packable(config, layers)
    called = [model.get_submodule(at.attention) for at in layers if at.attention]
    plain = heads.uniform and not any(beyond_sdpa(module, config) for module in called)
    layers = tuple(
        replace(
            at, norms=find_norms(at.index, model.get_submodule(at.module), at.module, hidden_size)
        )
        for at in layers
    )
    return Anatomy(
        architecture=config.model_type,
        layers=layers if plain else tuple(replace(at, attention="") for at in layers),
        hidden_size=hidden_size,
        intermediate_size=first["down"].in_features if "down" in first else inner_size,
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        n_params=n_parameters(model),
        modality=_modality(model, config),
        causal=is_causal(model, layers[0].attention, config.model_type),
        packable=not why_not,
        why_not=why_not,
        memory=layer_memory(
            model,
            model.get_submodule(layers[-1].module),
            hidden_size=hidden_size,
            fused="value" in first and first["value"].fused,
        ),
        embeddings=find_embeddings(model) if _modality(model, config) == "text" else None,
        takes_cache=bool(cache_argument(model)),
        run_twice=("query", "key") if _relative(config) else (),
    )


def _found_layers(model: nn.Module, config: Any) -> tuple[Layer, ...]:
    stack = _stack(model, config)
    layers = []
    for index, module in enumerate(stack.modules):
        name = f"{stack.name}.{index}"
        maps = linear_maps(module, name)
        roles = find_roles(index, maps, config.model_type)
        sites, why = _checked(roles, routed=has_routed_experts(module))
        if why:
            raise _not_understood(config, f"in layer {index}, {why}", (stack,), maps)
        attention = attention_module(model, f"{name}.{roles.attention}", name)
        layers.append(Layer(index, name, sites, attention))
    return tuple(layers)


def _stack(model: nn.Module, config: Any) -> Stack:
    """The stack with as many layers as the configuration says; of several, the encoder's."""
    n_layers = getattr(config, "num_hidden_layers", None)
    stacks = layer_stacks(model)
    fitting = [stack for stack in stacks if len(stack.modules) == n_layers]
    if len(fitting) > 1 and getattr(config, "is_encoder_decoder", False):
        fitting = [stack for stack in fitting if stack.name.startswith("encoder.")]
    if len(fitting) == 1:
        return fitting[0]
    why = f"{len(fitting) or 'no'} layer stacks of {n_layers} layers"
    example = next((stack for stack in stacks), None)
    maps = linear_maps(example.modules[0], f"{example.name}.0") if example else linear_maps(model)
    raise _not_understood(config, why, stacks, maps)


def _checked(roles: Roles, *, routed: bool) -> tuple[dict[str, Site], str]:
    """The usable sites of a layer and "", or what is not understood of it.

    Routed experts are no linear modules, so that their layers offer the attention's sites alone.
    """
    sites = dict(roles.sites)
    if routed:
        sites = {role: site for role, site in sites.items() if role not in FFN_ROLES}
    attention_only = routed or not roles.rest or not sites
    wanted = ATTENTION_ROLES if attention_only else (*ATTENTION_ROLES, "up", "down")
    missing = [role for role in wanted if role not in sites]
    if missing:
        return {}, f"no single map is recognised as {', '.join(missing)}"
    if sites["query"].in_features != sites["output"].out_features:
        return {}, "query and output have different outer widths"
    if "down" in sites and any(
        sites[role].out_features != sites["down"].in_features
        for role in ("up", "gate")
        if role in sites
    ):
        return {}, "up, gate and down have different inner widths"
    return sites, ""


def _declared_layers(model: nn.Module, sites: Mapping[str, str]) -> tuple[Layer, ...]:
    """All layers, those without declared sites too, so that positions are indices."""
    by_layer = declared_sites(sites, linear_maps(model))
    stack_name = next(iter(by_layer)).rpartition(".")[0]
    n_layers = 1 + max(int(name.rpartition(".")[2]) for name in by_layer)
    stack = model.get_submodule(stack_name)
    if isinstance(stack, nn.ModuleList | nn.Sequential):
        n_layers = len(stack)
    layers = []
    for index in range(n_layers):
        name = f"{stack_name}.{index}".lstrip(".")
        found = by_layer.get(name, {})
        holder = found["query"].module.rpartition(".")[0] if "query" in found else ""
        layers.append(Layer(index, name, found, attention_module(model, holder, name)))
    return tuple(layers)


@dataclass(frozen=True)
class _Heads:
    n_heads: int
    n_kv_heads: int
    head_dim: int
    uniform: bool


def _heads(config: Any, layers: Sequence[Layer]) -> _Heads:
    """Heads by the widths of the first layer's maps, by the configuration where there are none.

    `uniform` says whether keys and values are whole heads of one width in every layer, as a
    prefix needs them.
    """
    n_heads = _width(config, "num_attention_heads")
    sites = layers[0].sites
    if "output" in sites:
        head_dim = sites["output"].in_features // n_heads
    else:
        head_dim = getattr(config, "head_dim", None) or _width(config, "hidden_size") // n_heads
    widths = {
        layer.sites[role].out_features
        for layer in layers
        for role in ("key", "value")
        if role in layer.sites
    }
    if len(widths) == 1 and (width := widths.pop()) % head_dim == 0:
        return _Heads(n_heads, width // head_dim, head_dim, uniform=True)
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return _Heads(n_heads, n_kv_heads, head_dim, uniform=False)


def _width(config: Any, key: str) -> int:
    value = getattr(config, key, None)
    if not isinstance(value, int) or value < 1:
        given = f"architecture {config.model_type!r}, whose configuration gives {key} as {value}"
        raise BackboneError(Fault("model", "name_or_path", given, f"a model with {key}"))
    return value


def _modality(model: nn.Module, config: Any) -> str:
    name = str(getattr(model, "main_input_name", "input_ids"))
    if name not in MODALITIES:
        given = f"architecture {config.model_type}, which reads {name}"
        raise BackboneError(Fault("model", "name_or_path", given, "models of text or images"))
    return MODALITIES[name]


def _relative(config: Any) -> bool:
    """Whether it has DeBERTa's attention, whose query and key maps run on positions too."""
    return bool(getattr(config, "relative_attention", False))


def _why_not_packable(config: Any, layers: Sequence[Layer]) -> str:
    """Why lanes cannot share one pass; "" where they can."""
    if _relative(config):
        return "relative attention runs its query and key maps a second time, on the positions"
    if (getattr(config, "conv_kernel_size", None) or 0) > 0:
        return "a convolution runs between its layers"
    if len(layers) != getattr(config, "num_hidden_layers", len(layers)):
        return "its layers share weights: each runs several times"
    if not all(layer.attention for layer in layers):
        return (
            "its attention does not go through transformers' attention interface, "
            "so that how its maps are used is unknown"
        )
    return ""


def _not_understood(
    config: Any, why: str, stacks: Sequence[Stack], maps: Mapping[str, LinearMap]
) -> BackboneError:
    """One line: what was found, and how to declare the sites."""
    listed = [str(linear) for linear in list(maps.values())[:_MAX_LISTED]]
    more = [f"{len(maps) - _MAX_LISTED} more"] if len(maps) > _MAX_LISTED else []
    found_stacks = ", ".join(str(stack) for stack in stacks) or "none"
    given = (
        f"architecture {config.model_type!r}, which is not understood: {why}; "
        f"layer stacks: {found_stacks}; linear maps of one layer: "
        f"{', '.join(listed + more) or 'none'}"
    )
    hint = (
        "declare which map plays which role by regular expressions over whole module names, "
        r"such as `model: {sites: {query: '.*\.attn\.q', value: '.*\.attn\.v'}}` in the study "
        f"(roles: {', '.join(LINEAR_ROLES)})"
    )
    return BackboneError(
        Fault("model", "name_or_path", given, "architectures with recognised layers", hint)
    )
