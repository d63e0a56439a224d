"""Today's configuration of any type of `peft`: as a method with lanes, or passed through.

A file's values are kept where the type's parameters here have them; places become layers and
sites. Where a method of ours trains the same (`Method.from_peft`), the configuration names it, and
`peft:<TYPE>` otherwise.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

from autopeft import counting
from autopeft.backbone.anatomy import LINEAR_ROLES, NORMS, Anatomy
from autopeft.backbone.skeleton import Skeleton
from autopeft.configuration import TRAINING_KEYS, Configuration, Group
from autopeft.errors import Fault, InputError
from autopeft.methods import registry
from autopeft.methods.passed.parameters import REFUSED, config_class, default_of
from autopeft.methods.passed.types import TYPES, PeftType
from autopeft.space.method_names import NOT_PASSED, PREFIX, listed
from autopeft.space.schema import ParameterSchema, Scalar

PLACES = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "feedforward_modules", "adapter_layers",
)  # fmt: skip
"""What of a file says where an adapter sits."""

PATTERNS = {
    "rank_pattern": ("r",),
    "alpha_pattern": ("lora_alpha", "alpha"),
    "n_frequency_pattern": ("n_frequency",),
    "block_size_pattern": ("block_size",),
    "lambda_pattern": ("delora_lambda",),
}
"""Sizes by module, and the parameter that each is of."""

ABOUT = frozenset(
    {
        *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
        *("auto_mapping", "peft_version", "fan_in_fan_out", "token_dim", "num_layers"),
        *("num_attention_heads", "num_transformer_submodules", "hidden_size"),
    }
)
"""What the backbone says, or what changes nothing."""


@dataclass(frozen=True)
class ForeignType:
    """What a file says of an adapter that is no plain LoRA.

    Attributes:
        kind: Its type.
        settings: Its parameters, those at their defaults left out.
        places: Where it sits, by `PLACES`.
        patterns: Sizes by module, by `PATTERNS`.
    """

    kind: PeftType
    settings: Mapping[str, Scalar]
    places: Mapping[str, Any]
    patterns: Mapping[str, Mapping[str, Scalar]]


def read_type(plain: Mapping[str, Any], where: str) -> ForeignType:
    """What an `adapter_config.json` says; InputError with all its faults."""
    kind = _kind(str(plain.get("peft_type", "nothing")), where)
    schema = registry[PREFIX + kind.name].schema
    known = {each.name: _json(default_of(each)) for each in fields(config_class(kind.name))}
    own = {each.name: each for each in schema.parameters}
    settings: dict[str, Scalar] = {}
    faults = []
    said: dict[str, Any] = {key: known[key] for key in kind.telling} | dict(plain)
    for key, value in said.items():
        if value is None or key in ABOUT or key in PLACES or key in PATTERNS:
            continue
        if key in own:
            scalar = _text(value) if key in (*kind.numbers, *kind.folders) else value
            if fault := _illegal(own[key], scalar, where):
                faults.append(fault)
            elif scalar != own[key].default:
                settings[key] = scalar
        elif _differs(key, value, known, kind):
            faults.append(_refused(key, value, kind, where))
    faults += [
        Fault(where, key, "nothing", own[key].kind)
        for key in ([schema.size] if schema.size else [])
        if plain.get(key) is None and own[key].default is None
    ]
    if faults:
        raise InputError(faults)
    places = {key: plain[key] for key in PLACES if plain.get(key) is not None}
    patterns = {key: plain[key] for key in PATTERNS if plain.get(key)}
    return ForeignType(kind, settings, places, patterns)


def _kind(name: str, where: str) -> PeftType:
    found = {kind.name: kind for kind in TYPES}.get(name)
    if found is None:
        hint = NOT_PASSED.get(name, "write the method's block under search.baselines by hand")
        raise InputError(Fault(where, "peft_type", name, listed(registry.offered()), hint))
    return found


def _text(value: Any) -> Any:
    """A list of numbers, or folders by their names, as one text."""
    if isinstance(value, Mapping):
        return ", ".join(map(str, value.values()))
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _illegal(parameter: ParameterSchema, value: Any, where: str) -> Fault | None:
    if parameter.kind in ("int", "float"):
        legal = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        legal = parameter.admits(value)
    if legal:
        return None
    allowed = " | ".join(parameter.words) or parameter.kind
    return Fault(where, parameter.name, str(value)[:60], allowed, parameter.why_not(value))


def _differs(key: str, value: object, known: Mapping[str, object], kind: PeftType) -> bool:
    """Whether a value that is no parameter here says something else than what is trained."""
    if key in kind.telling:
        return value != kind.fixed[key]
    return value not in (known.get(key), kind.fixed.get(key)) and bool(value or key in kind.fixed)


def _refused(key: str, value: object, kind: PeftType, where: str) -> Fault:
    allowed = str(kind.fixed[key]) if key in kind.fixed else "nothing: autopeft has no such key"
    return Fault(where, key, str(value)[:60], allowed, REFUSED.get(key, ""))


def _json(value: object) -> object:
    return sorted(value) if isinstance(value, set) else value


# -- the configuration ----------------------------------------------------------------------------


def type_baseline(foreign: ForeignType, skeleton: Skeleton, where: str) -> dict[str, Any]:
    """The configuration in plain form, without training values.

    Args:
        foreign: What the file says.
        skeleton: The backbone that it is for.
        where: The file.

    Raises:
        InputError: The backbone cannot carry it, or modules are no places here; all faults.
    """
    placed, faults = _placed(foreign, skeleton, where)
    if faults:
        raise InputError(faults)
    passed = _built(PREFIX + foreign.kind.name, placed)
    ours = _ours(foreign, placed, skeleton.anatomy)
    chosen = passed if ours is None else ours
    (name,) = chosen.methods
    why = registry[name].carried_by(skeleton.anatomy)
    if why:
        told = [Fault(where, "peft_type", foreign.kind.name, "a type that the model carries", why)]
        raise InputError(told)
    if told := counting.faults(chosen, skeleton.anatomy):
        raise InputError([replace(fault, where=where) for fault in told])
    return {name: chosen.to_dict()[name]}


Placed = list[tuple[tuple[int, ...], tuple[str, ...], dict[str, Scalar]]]
"""Layers, sites and settings of groups."""


def _built(name: str, placed: Placed) -> Configuration:
    groups = [Group.of(name, layers, sites, **settings) for layers, sites, settings in placed]
    return Configuration.of(groups, training=dict.fromkeys(TRAINING_KEYS, 0.0))


def _ours(foreign: ForeignType, placed: Placed, anatomy: Anatomy) -> Configuration | None:
    """The same by a method with lanes, where one trains it."""
    config: dict[str, object] = {
        each.name: default_of(each) for each in fields(config_class(foreign.kind.name))
    }
    for name in registry.names():
        method = registry[name]
        if method.peft_type != foreign.kind.name or method.carried_by(anatomy):
            continue
        told = [(at, sites, method.from_peft(config | own)) for at, sites, own in placed]
        known = [(at, sites, dict(own)) for at, sites, own in told if own is not None]
        if len(known) < len(told):
            continue
        built = _built(name, known)
        lacks = any(method.peft_lacks(group, anatomy) for group in built.groups)
        if not lacks and not counting.faults(built, anatomy):
            return built
    return None


def _placed(foreign: ForeignType, skeleton: Skeleton, where: str) -> tuple[Placed, list[Fault]]:
    """Where the file's adapter sits, by the settings that it has there."""
    n_layers, settings = len(skeleton.anatomy.layers), dict(foreign.settings)
    size = registry[PREFIX + foreign.kind.name].schema.size
    if size:
        default = registry[PREFIX + foreign.kind.name].schema.parameter(size).default
        settings = ({} if default is None else {size: default}) | settings
    every = {"prompt": 1, "embeddings": 1, "prefix": n_layers, "experts": n_layers}
    if foreign.kind.where in every:
        return [(tuple(range(every[foreign.kind.where])), (), settings)], []
    if foreign.kind.where == "attention":
        last = int(foreign.places.get("adapter_layers") or 0)
        if not 0 < last <= n_layers:
            return [], [Fault(where, "adapter_layers", str(last), f"1 to {n_layers}")]
        return [(tuple(range(n_layers - last, n_layers)), (), settings)], []
    if foreign.kind.where == "layers":
        return _of_layers(foreign, skeleton, settings, where)
    places, others = matched(foreign.places, skeleton, norms=foreign.kind.where == "norm")
    faults = _place_faults(foreign, places, others, where)
    placed: Placed = []
    for name, at in places.items():
        own = settings | dict(_patterned(foreign, name))
        placed += [((layer,), (role,), own) for layer, role in at]
    return placed, faults


def _of_layers(
    foreign: ForeignType, skeleton: Skeleton, settings: dict[str, Scalar], where: str
) -> tuple[Placed, list[Fault]]:
    """Of whole layers: all of them where the file names none."""
    inner = skeleton.model.base_model_prefix
    named = {f"{inner}.{layer.module}": layer.index for layer in skeleton.anatomy.layers}
    wanted = foreign.places.get("target_modules")
    hit = [at for name, at in named.items() if wanted is None or _hits(foreign.places, name)]
    if not hit:
        allowed = f"layers of the model: {', '.join(named)}"
        return [], [Fault(where, "target_modules", str(wanted)[:60], allowed)]
    return [(tuple(hit), (), settings)], []


def _patterned(foreign: ForeignType, name: str) -> Iterator[tuple[str, Scalar]]:
    from peft.utils.other import get_pattern_key

    parameters = {e.name for e in registry[PREFIX + foreign.kind.name].schema.parameters}
    for pattern, values in foreign.patterns.items():
        key = get_pattern_key(tuple(values), name)
        if key in values:
            yield next(each for each in PATTERNS[pattern] if each in parameters), values[key]


Modules = dict[str, list[tuple[int, str]]]
"""Layers and roles of a module by its name."""


def matched(
    places: Mapping[str, Any], skeleton: Skeleton, *, norms: bool
) -> tuple[Modules, list[str]]:
    """The modules that `peft` would adapt, with their layers and roles, and its others.

    Args:
        places: By `PLACES`.
        skeleton: The backbone.
        norms: Whether the type adapts norms, and not linear maps.
    """
    wanted = places.get("target_modules")
    inner = str(skeleton.model.base_model_prefix)
    whole = hasattr(skeleton.model, inner)  # with its head
    known = _known(skeleton.anatomy, f"{inner}.", NORMS if norms else LINEAR_ROLES)
    found: Modules = {}
    others = []
    for name, module in skeleton.model.named_modules():
        key = name if whole else f"{inner}.{name}"
        if wanted is None or any(True for _ in module.children()):
            continue
        hit = key in known if wanted == "all-linear" else _hits(places, key)
        if hit and key in known:
            found[key] = known[key]
        elif hit:
            others.append(key)
    return found, others


def unmatched(
    places: Mapping[str, Any],
    patterns: Mapping[str, Mapping[str, Any]],
    modules: Collection[str],
    where: str,
) -> list[Fault]:
    """Targets and patterns that fit no module, which `peft` passes over in silence.

    Args:
        places: By `PLACES`.
        patterns: Settings by module, by the pattern's key.
        modules: Full names of those that are adapted.
        where: The file.
    """
    from peft.utils.other import get_pattern_key

    wanted = places.get("target_modules")
    allowed = "names of modules that the adapter sits on (autopeft sites MODEL)"
    unknown = [
        ("target_modules", target)
        for target in (() if wanted is None or isinstance(wanted, str) else wanted)
        if not any(_hits({**places, "target_modules": [target]}, name) for name in modules)
    ]
    unknown += [
        (pattern, key)
        for pattern, values in patterns.items()
        for key in values
        if not any(get_pattern_key((key,), name) == key for name in modules)
    ]
    return [Fault(where, key, str(name)[:60], allowed) for key, name in unknown]


def _hits(places: Mapping[str, Any], name: str) -> bool:
    """Whether `peft` would adapt a module, by its full name in the task's model."""
    from peft.tuners.tuners_utils import check_target_module_exists

    keys = ("exclude_modules", "layers_to_transform", "layers_pattern", "target_modules")
    asked = SimpleNamespace(**{key: places.get(key) for key in keys}, target_parameters=None)
    if isinstance(asked.layers_to_transform, int):
        asked.layers_to_transform = [asked.layers_to_transform]
    return bool(check_target_module_exists(asked, name))


def _known(anatomy: Anatomy, prefix: str, roles: Iterable[str]) -> Modules:
    known: Modules = {}
    for layer in anatomy.layers:
        for role in roles:
            held = layer.sites.get(role) or layer.norms.get(role)
            if held is not None:
                known.setdefault(f"{prefix}{held.module}", []).append((layer.index, role))
    return known


def _place_faults(
    foreign: ForeignType, places: Modules, others: list[str], where: str
) -> list[Fault]:
    wanted, faults = foreign.places.get("target_modules"), []
    if others:
        given = f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"
        allowed = "linear maps or norms of the backbone's layers (autopeft sites MODEL)"
        faults.append(Fault(where, "target_modules", given, allowed))
    if not places:
        given = str(wanted or "nothing")[:60]
        allowed = "modules that the model has (autopeft sites MODEL)"
        faults.append(Fault(where, "target_modules", given, allowed))
    else:
        faults += unmatched(foreign.places, foreign.patterns, [*places, *others], where)
    if foreign.kind.ends and isinstance(wanted, str):
        hint = "by one expression it shares tensors among all maps of a shape"
        faults.append(Fault(where, "target_modules", wanted[:60], "a list of names", hint))
    if foreign.kind.name == "HIRA" and foreign.patterns:
        given = ", ".join(foreign.patterns)
        faults.append(Fault(where, given, "sizes by module", "none: peft's HiRA ignores them"))
    if "feedforward_modules" in foreign.places:
        faults += _feedforward_faults(foreign.places["feedforward_modules"], places, where)
    return faults


def _feedforward_faults(wanted: Any, places: Modules, where: str) -> list[Fault]:
    """Inputs are scaled at `down` alone."""
    from peft.tuners.ia3.model import IA3Model

    config = SimpleNamespace(feedforward_modules=wanted)
    read = {name for name in places if IA3Model._check_target_module_feedforward(config, name)}
    down = {name for name, at in places.items() if at[0][1] == "down"}
    if read == down:
        return []
    given = ", ".join(sorted(read ^ down)[:2])
    allowed = "the `down` maps, of which inputs are scaled, and no others"
    return [Fault(where, "feedforward_modules", given, allowed)]
