"""Settings that a method allows on a backbone, taken from its schema and its own word."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autopeft import counting
from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.methods.inherited import linear_places
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
SIZES = (1, 3, 8)
"""What sizes are tried where a method allows any."""
WHOLE = 50
"""What a size is a share of, where the method's size is a share."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "sparse": [
        {},
        {"granularity": "input", "smallest": True},
        {"granularity": "input", "score": "activation", "noise": 4},
        {"granularity": "output", "score": "random"},
        {"granularity": "block", "block": 4, "score": "fisher"},
        {"granularity": "block", "block": 8},
        {"granularity": "block", "block": 5, "score": "diagonal"},
        {"granularity": "head", "score": "magnitude", "sites": ["query", "value", "output"]},
        {"score": "magnitude", "smallest": True},
    ],
    "salient_channels": [{}, {"score": "gradient"}, {"score": "random"}],
    "surm": [
        {},
        {"structure": "circulant", "sites": ["query", "output"]},
        {"structure": "circulant", "factored": False, "sites": ["query", "output"]},
        {"structure": "toeplitz", "sites": ["query", "output"]},
        {"structure": "ldr", "terms": 2, "sites": ["query", "output"]},
    ],
    "reft": [
        {},
        {"kind": "direft", "first": 2, "last": 0},
        {"orthonormal": False, "positions": "all"},
        {"kind": "direft", "orthonormal": False, "first": 0, "last": 1},
    ],
    "dept": [{"positions": 5, "rank": 2}],
    "boft": [{}, {"block_size": 4, "factors": 3}, {"block_size": 8, "factors": 2}],
    "snell": [{"sparsity": 0.9}, {"sparsity": 0.0}, {"sparsity": 0.45}],
    "svft": [
        {},
        {"pattern": "plain", "bands": 1},
        {"pattern": "random"},
        {"pattern": "top_k", "sites": ["query", "output"]},
    ],
}
"""Settings that go together, where not any do."""


def variants(name: str) -> list[dict[str, Any]]:
    """Every setting but the size and dropout off its default once, the others at theirs.

    A flag is turned, of choices each has its turn, numbers are halved. What `VARIANTS` varies is
    varied as it says.
    """
    schema = registry[name].schema
    found = list(VARIANTS.get(name, [{}]))
    varied = {key for given in found for key in given}
    for parameter in schema.parameters:
        if parameter.name not in {*varied, schema.size, "dropout"}:
            meant = dict([parameter.when]) if parameter.when else {}
            found += [found[0] | meant | {parameter.name: value} for value in _others(parameter)]
    return found


def _others(parameter: ParameterSchema) -> Iterator[Scalar]:
    """Legal values that are not the default."""
    default = parameter.default
    if parameter.kind == "bool":
        yield not default
    elif parameter.kind == "str":
        yield from (value for value in parameter.choices if value != default)
    else:
        least = parameter.minimum or 0.0
        half = type(default)(default / 2)
        yield half if half >= least and half != default else default * 2


def every_setting(name: str) -> list[dict[str, Any]]:
    """The variants, and dropout where there is one."""
    return variants(name) + [given for given in [dropout(name, 0.2)] if given]


def fits(name: str, anatomy: Anatomy, size: Scalar | None = None, **given: Any) -> bool:
    """Whether a backbone carries a method as `configuration` sets it up."""
    return not counting.faults(configuration(name, anatomy, size, **given), anatomy)


def carried(anatomy: Anatomy) -> list[str]:
    """Names of the methods with files of their own that a backbone carries, sorted."""
    return [name for name in sorted(registry.names()) if not registry[name].carried_by(anatomy)]


def dropout(name: str, rate: float) -> dict[str, float]:
    """The rate as a setting, of a method that has it."""
    has_it = any(parameter.name == "dropout" for parameter in registry[name].schema.parameters)
    return {"dropout": rate} if has_it else {}


def legal_values(name: str, parameter: str, anatomy: Anatomy) -> Sequence[Scalar] | None:
    """What every linear site of a backbone allows of a parameter; None where they have no say."""
    method = registry[name]
    if method.schema.sites != LINEAR_ROLES:
        return None
    everywhere = Group.of(name, range(len(anatomy.layers)), anatomy.roles)
    said = [method.legal(parameter, place) for place in linear_places(everywhere, anatomy)]
    allowed = [each for each in said if each is not None]
    if not allowed:
        return None
    everywhere_legal = [v for v in allowed[0] if all(v in each for each in allowed)]
    is_range = all(isinstance(each, range) for each in allowed)
    if is_range and everywhere_legal:
        return range(int(everywhere_legal[0]), int(everywhere_legal[-1]) + 1)
    return tuple(everywhere_legal)


def allowed(name: str, site: str, given: Mapping[str, Any], anatomy: Anatomy) -> bool:
    """Whether a linear site's shape allows what is given: some things need square maps."""
    method = registry[name]
    if site not in anatomy.roles:
        return True
    places = linear_places(Group.of(name, range(len(anatomy.layers)), [site]), anatomy)
    legal = [(value, method.legal(key, place)) for key, value in given.items() for place in places]
    return all(each is None or value in each for value, each in legal)


def sizes(name: str, anatomy: Anatomy) -> tuple[Scalar, ...]:
    """Up to three sizes that a method allows on all sites of a backbone, smallest first."""
    schema = registry[name].schema
    if not schema.size:
        return (0,)
    legal = legal_values(name, schema.size, anatomy)
    if isinstance(legal, range):
        return tuple(size for size in SIZES if size in legal)
    if legal is not None:
        return tuple(sorted({legal[0], legal[len(legal) // 2], legal[-1]}))
    if schema.parameter(schema.size).kind == "float":
        return tuple(size / WHOLE for size in SIZES)
    return SIZES


def settings(schema: MethodSchema, anatomy: Anatomy, size: Scalar, **given: Any) -> dict[str, Any]:
    """Values of all parameters that mean something: what is given, else a legal one."""
    chosen: dict[str, Any] = {schema.size: size} if schema.size else {}
    chosen |= given
    for parameter in schema.parameters:
        sibling = parameter.when
        if parameter.name in chosen or (sibling and chosen.get(sibling[0]) != sibling[1]):
            continue
        chosen[parameter.name] = _legal(schema.name, parameter, anatomy)
    return chosen


def _legal(name: str, parameter: ParameterSchema, anatomy: Anatomy) -> Scalar | None:
    legal = legal_values(name, parameter.name, anatomy)
    return parameter.default if legal is None or parameter.default in legal else legal[-1]


def configuration(
    name: str,
    anatomy: Anatomy,
    size: Scalar | None = None,
    *,
    layers: Sequence[int] = (),
    training: dict[str, float] = TRAINING,
    **given: Any,
) -> Configuration:
    """One group of a method on every second layer and all of its sites that there are.

    Args:
        name: The method.
        anatomy: The backbone.
        size: By default the middle of `sizes`.
        layers: In place of every second one.
        training: Training values.
        given: Settings, and `sites`.
    """
    schema = registry[name].schema
    if size is None:
        size = sizes(name, anatomy)[len(sizes(name, anatomy)) // 2]
    offered = {*anatomy.roles, *anatomy.sublayers, *anatomy.norms}
    sites = [site for site in given.pop("sites", schema.sites) if site in offered]
    own = layers or range(0, len(anatomy.layers), 2)
    group = Group.of(name, own, sites, **settings(schema, anatomy, size, **given))
    return Configuration.of([group], training=training)


REFUSED: Mapping[str, tuple[Mapping[str, Scalar], str, str]] = {
    "boft": ({"block_size": 2, "factors": 9}, "boft.factors", "1 to 5"),
    "compacter": ({"division": 3}, "compacter.division", "1, 2, 4, 8"),
    "dept": ({"initial": "vocabulary"}, "dept.initial", "random"),
    "moelora": ({"experts": 2, "top_k": 3}, "moelora.top_k", "at most 2, the experts"),
    "prompt": ({"initial": "vocabulary"}, "prompt.initial", "random"),
    "reft": ({"rank": 999}, "reft.rank", "1 to 32, the hidden size"),
    "salient_channels": ({"channels": 33}, "salient_channels.channels", "at most 32"),
    "sparse": (
        {"granularity": "block", "block": 100, "score": "random"},
        "sparse.block",
        "1 to 32",
    ),
    "svft": ({"pattern": "plain", "bands": 2}, "svft.bands", "1"),
    "vb_lora": ({"chosen": 99, "vectors": 9}, "vb_lora.chosen", "at most 9, the bank's vectors"),
    "waveft": ({"coefficients": 10**6}, "waveft.coefficients", "at most 1024"),
}
"""What methods refuse beyond `legal`, here on a ViT: settings, key and allowed values as told."""


def illegal(name: str, anatomy: Anatomy) -> Iterator[tuple[str, Scalar]]:
    """Parameters whose values the backbone restricts, each with one that it refuses.

    Of whole numbers the smallest one; of words every one that some linear site refuses.
    """
    for parameter in registry[name].schema.parameters:
        legal = legal_values(name, parameter.name, anatomy)
        if legal is None:
            continue
        if parameter.kind == "int":
            low = int(parameter.minimum or 1)
            high = int(parameter.maximum or 0) or max(int(value) for value in legal) + 1
            yield parameter.name, next(v for v in range(low, high + 1) if v not in legal)
        yield from ((parameter.name, word) for word in parameter.choices if word not in legal)
