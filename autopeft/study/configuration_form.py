"""A configuration's plain form as a person writes it: what is of the right form, what it means.

`Configuration.from_dict` trusts its input and wants every value; this is the way there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autopeft.configuration import TRAINING_KEYS, TRAINING_OPTIONS, Configuration
from autopeft.space.faults import shown
from autopeft.space.schema import MethodSchema, ParameterSchema, RuleSchema, Scalar
from autopeft.study.findings import Finding, Loc

PLACEMENT = ("layers", "sites")
"""The keys of a method block that say where; all others are parameters."""

NO_RULE = "none"


def form_findings(plain: object) -> list[Finding]:
    """The faults of form alone: `{method: [{layers: [...], ...}, ...], ...}`."""
    if not isinstance(plain, Mapping):
        return [Finding((), shown(plain), "a block {method: [{layers: [...], ...}]}")]
    findings = []
    for name, value in plain.items():
        if name in ("sparsity", "training"):
            if not isinstance(value, Mapping):
                findings.append(Finding((name,), shown(value), "a block of keys and values"))
            elif name == "sparsity":
                findings += _single_values((name,), value)
        elif not isinstance(value, (list, tuple)):
            hint = "put the block into a list: [{...}]" if isinstance(value, Mapping) else ""
            findings.append(Finding((str(name),), shown(value), "a list of blocks", hint))
        else:
            for index, entry in enumerate(value):
                findings += _entry_findings((str(name), index), entry)
    return findings


def _entry_findings(loc: Loc, entry: object) -> list[Finding]:
    if not isinstance(entry, Mapping):
        return [Finding(loc, shown(entry), "a block {layers: [...], ...}")]
    findings = []
    layers = entry.get("layers")
    if not _is_list(layers, int) or not layers:
        given = shown(layers) if "layers" in entry else "nothing"
        findings.append(Finding((*loc, "layers"), given, "a list of layers, counted from 0"))
    if "sites" in entry and (not _is_list(entry["sites"], str) or not entry["sites"]):
        findings.append(Finding((*loc, "sites"), shown(entry["sites"]), "a list of sites"))
    return findings + _single_values(loc, entry)


def _single_values(loc: Loc, entry: Mapping[str, Any]) -> list[Finding]:
    return [
        Finding((*loc, str(name)), shown(value), "one value")
        for name, value in entry.items()
        if name not in PLACEMENT and not isinstance(value, (bool, int, float, str))
    ]


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in value
    )


def entries_of(plain: Mapping[str, Any]) -> Iterator[tuple[Loc, str, Mapping[str, Any]]]:
    """Every method block of a plain form: its place, its method, itself."""
    for method, entries in plain.items():
        if method not in ("sparsity", "training"):
            for index, entry in enumerate(entries):
                yield (method, index), method, entry


def complete_configuration(
    plain: Mapping[str, Any],
    schemas: Mapping[str, MethodSchema],
    training: Mapping[str, Scalar],
    *,
    rules: Mapping[str, RuleSchema],
) -> Configuration:
    """The configuration that a checked plain form stands for, defaults filled in.

    Args:
        plain: A form without faults.
        schemas: The registered methods.
        training: The study's values of `TRAINING_KEYS` and `TRAINING_OPTIONS`, for those it does
            not give; options may be left out.
        rules: The registered sparsity rules.

    Raises:
        SpaceError: A method sits twice on one layer and site.
    """
    values = {**TRAINING_OPTIONS, **training, **plain.get("training", {})}
    sparsity = plain.get("sparsity", {})
    rule = str(sparsity.get("rule", NO_RULE))
    complete: dict[str, Any] = {
        "sparsity": {"rule": rule} | _parameters(sparsity, rules[rule].parameters),
        "training": {name: float(values[name]) for name in (*TRAINING_KEYS, *TRAINING_OPTIONS)},
    }
    for _, method, entry in entries_of(plain):
        complete.setdefault(method, []).append(_completed(entry, schemas[method]))
    return Configuration.from_dict(complete)


def active(
    parameter: ParameterSchema, entry: Mapping[str, Any], siblings: Sequence[ParameterSchema]
) -> bool:
    """Whether a parameter means anything beside its siblings."""
    if parameter.when is None:
        return True
    name, _ = parameter.when
    default = next(sibling.default for sibling in siblings if sibling.name == name)
    return parameter.means(entry.get(name, default))


def _completed(entry: Mapping[str, Any], schema: MethodSchema) -> dict[str, Any]:
    complete: dict[str, Any] = {"layers": entry["layers"]}
    if schema.sites:
        complete["sites"] = entry.get("sites", schema.default_sites)
    return complete | _parameters(entry, schema.parameters)


def _parameters(entry: Mapping[str, Any], parameters: Sequence[ParameterSchema]) -> dict[str, Any]:
    """The values of all parameters that mean something, defaults filled in."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        if active(parameter, entry, parameters):
            value = entry.get(parameter.name, parameter.default)
            if parameter.is_said(value) and value is not None:
                values[parameter.name] = float(value) if parameter.kind == "float" else value
    return values
