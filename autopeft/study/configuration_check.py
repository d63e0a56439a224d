"""Checks a configuration that somebody wrote by hand, before anything trusts it.

`Configuration.from_dict` trusts its input. Here the plain form is held against what the methods
and, where it is known, the backbone say of themselves: form first, then meaning.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.configuration import TRAINING_KEYS, TRAINING_OPTIONS
from autopeft.errors import Fault, SpaceError
from autopeft.space.faults import nearest, shown
from autopeft.space.method_names import listed, why_unknown
from autopeft.space.schema import POSITIVE, MethodSchema, ParameterSchema, RuleSchema, Shape
from autopeft.space.spellings import (
    PARAMETER_SPELLINGS,
    RULE_SPELLINGS,
    SITE_SPELLINGS,
    TRAINING_SPELLINGS,
)
from autopeft.space.training import OPTIONS
from autopeft.study.configuration_form import (
    NO_RULE,
    PLACEMENT,
    active,
    complete_configuration,
    entries_of,
    form_findings,
)
from autopeft.study.findings import Finding, Loc

_LIMITS: Mapping[str, tuple[float, float, str]] = {
    "learning_rate": (5e-324, float("inf"), "a number > 0"),
    "weight_decay": (0.0, float("inf"), "a number >= 0"),
    "warmup_ratio": (0.0, 1.0, "a number >= 0 and < 1"),
}


def check_configuration(
    plain: object,
    schemas: Mapping[str, MethodSchema],
    shape: Shape | None,
    where: str,
    *,
    rules: Mapping[str, RuleSchema],
    key: str = "configuration",
) -> list[Fault]:
    """All faults of a configuration in its plain form.

    Args:
        plain: What should be the form of `Configuration.to_dict`; `sparsity`, `training` and
            parameters and sites that have a default may be left out.
        schemas: The registered methods.
        shape: The backbone, or None where it is not known: then layers and sites are not held
            against it.
        where: The file or flag it came from.
        rules: The registered sparsity rules.
        key: The dotted key at which it stands there, "" for the top.
    """
    findings = form_findings(plain)
    if not findings and isinstance(plain, Mapping):
        for loc, method, entry in entries_of(plain):
            findings += _method_findings(loc, method, entry, schemas, shape)
        methods = [method for _, method, _ in entries_of(plain)]
        findings += _sparsity_findings(plain.get("sparsity", {}), rules, methods)
        findings += _training_findings(plain.get("training", {}))
    faults = [_fault(finding, where, key) for finding in findings]
    if not faults and isinstance(plain, Mapping):
        faults = _overlaps(plain, schemas, rules, where, key)
    return faults


def _method_findings(
    loc: Loc,
    method: str,
    entry: Mapping[str, Any],
    schemas: Mapping[str, MethodSchema],
    shape: Shape | None,
) -> list[Finding]:
    schema = schemas.get(method)
    if schema is None:
        hint = why_unknown(method, schemas, say="did you mean `{}`?")
        unknown = Finding(loc[:1], "an unknown method", listed(schemas), hint)
        return [unknown] if loc[1] == 0 else []  # once per method, not once per group
    findings = []
    if shape is not None and method not in shape.methods:
        allowed = listed(sorted(shape.methods))
        findings.append(Finding(loc[:1], "a method this backbone cannot carry", allowed))
    findings += _layer_findings((*loc, "layers"), entry["layers"], shape)
    findings += _site_findings((*loc, "sites"), entry.get("sites", ()), schema, shape)
    return findings + _parameter_findings(loc, entry, schema)


def _layer_findings(loc: Loc, layers: Sequence[int], shape: Shape | None) -> list[Finding]:
    n_layers = shape.n_layers if shape is not None else None
    wrong = [i for i in layers if i < 0 or (n_layers is not None and i >= n_layers)]
    if not wrong:
        return []
    allowed = f"0 to {n_layers - 1}" if n_layers is not None else "0 and above"
    return [Finding(loc, shown(wrong), allowed, "layers are counted from 0")]


def _site_findings(
    loc: Loc, sites: Sequence[str], schema: MethodSchema, shape: Shape | None
) -> list[Finding]:
    if sites and not schema.sites:
        return [Finding(loc, shown(list(sites)), f"no sites: `{schema.name}` has its own place")]
    findings = []
    for site in sites:
        if site not in schema.sites:
            ours = SITE_SPELLINGS.get(site, "")
            hint = _did_you_mean(ours if ours in schema.sites else nearest(site, schema.sites))
            findings.append(Finding(loc, site, ", ".join(schema.sites), hint))
        elif shape is not None and site not in shape.roles:
            has = [name for name in schema.sites if name in shape.roles]
            findings.append(Finding(loc, site, ", ".join(has), "this backbone lacks it"))
    if shape is not None and not sites and not set(schema.default_sites) <= shape.roles:
        has = [name for name in schema.sites if name in shape.roles]
        findings.append(Finding(loc, "nothing", ", ".join(has), "name the sites"))
    return findings


def _parameter_findings(loc: Loc, entry: Mapping[str, Any], schema: MethodSchema) -> list[Finding]:
    names = [parameter.name for parameter in schema.parameters]
    findings = []
    for name in entry:
        if name not in names and name not in PLACEMENT:
            known = [*names, "layers", *(["sites"] if schema.sites else [])]
            ours = [ours for ours in PARAMETER_SPELLINGS.get(name, ()) if ours in known]
            hint = schema.refused.get(name, "")
            hint = hint or _did_you_mean(ours[0] if ours else nearest(name, known))
            findings.append(Finding((*loc, name), "an unknown key", ", ".join(known), hint))
    for parameter in schema.parameters:
        own = (*loc, parameter.name)
        if parameter.name not in entry:
            needed = parameter.default is None and not parameter.optional
            if needed and active(parameter, entry, schema.parameters):
                allowed = _allowed(parameter)
                findings.append(Finding(own, "nothing", allowed, "it must be given"))
        elif parameter.name == schema.size and _is_zero(entry[schema.size]):
            findings.append(Finding(own, "0", _allowed(parameter), "leave the whole group out"))
        else:
            findings += _value_findings(own, parameter, entry, schema.parameters)
    return findings


def _is_zero(value: object) -> bool:
    return value == 0 and not isinstance(value, bool)


def _value_findings(
    loc: Loc,
    parameter: ParameterSchema,
    entry: Mapping[str, Any],
    parameters: Sequence[ParameterSchema],
) -> list[Finding]:
    value = entry[parameter.name]
    if not _legal(value, parameter):
        return [Finding(loc, shown(value), _allowed(parameter), parameter.why_not(value))]
    if parameter.when is not None and not active(parameter, entry, parameters):
        sibling, wanted = parameter.when
        with_what = f"{sibling} above 0" if wanted == POSITIVE else f"{sibling}: {shown(wanted)}"
        hint = f"it means something only with {with_what}"
        return [Finding(loc, shown(value), "nothing", hint)]
    return []


def _legal(value: object, parameter: ParameterSchema) -> bool:
    if parameter.kind not in ("int", "float"):
        return parameter.admits(value)
    whole = parameter.kind == "int"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    low = float("-inf") if parameter.minimum is None else parameter.minimum
    high = float("inf") if parameter.maximum is None else parameter.maximum
    return low <= value <= high and abs(value) != float("inf")


def _allowed(parameter: ParameterSchema) -> str:
    if parameter.kind not in ("int", "float"):
        return ", ".join(parameter.words) or "a text"
    words = "a whole number" if parameter.kind == "int" else "a number"
    low = "" if parameter.minimum is None else f" >= {parameter.minimum:g}"
    high = "" if parameter.maximum is None else f" <= {parameter.maximum:g}"
    return f"{words}{low}{' and' if low and high else ''}{high}"


def _sparsity_findings(
    block: Mapping[str, Any], rules: Mapping[str, RuleSchema], methods: Sequence[str]
) -> list[Finding]:
    loc: Loc = ("sparsity",)
    rule = block.get("rule", NO_RULE)
    schema = rules.get(rule) if isinstance(rule, str) else None
    if schema is None:
        ours = RULE_SPELLINGS.get(str(rule), "")
        hint = _did_you_mean(ours if ours in rules else nearest(str(rule), rules))
        return [Finding((*loc, "rule"), shown(rule), ", ".join(rules), hint)]
    findings = []
    if schema.methods and not set(schema.methods) & set(methods):
        allowed = ", ".join(each.name for each in rules.values() if not each.methods)
        hint = f"it is for {', '.join(schema.methods)} alone"
        findings.append(Finding((*loc, "rule"), schema.name, allowed, hint))
    known = ["rule", *(parameter.name for parameter in schema.parameters)]
    for name in block:
        if name not in known:
            hint = _did_you_mean(nearest(str(name), known))
            findings.append(Finding((*loc, str(name)), "an unknown key", ", ".join(known), hint))
    for parameter in schema.parameters:
        if parameter.name in block:
            own = (*loc, parameter.name)
            findings += _value_findings(own, parameter, block, schema.parameters)
    return findings


def _training_findings(training: Mapping[str, Any]) -> list[Finding]:
    known = (*TRAINING_KEYS, *TRAINING_OPTIONS)
    findings = []
    for name, value in training.items():
        if name not in known:
            hint = _did_you_mean(TRAINING_SPELLINGS.get(name) or nearest(name, known))
            findings.append(Finding(("training", name), "an unknown key", ", ".join(known), hint))
            continue
        if name in TRAINING_OPTIONS:
            continue
        low, below, allowed = _LIMITS[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value < below:
            findings.append(Finding(("training", name), shown(value), allowed))
    for option in OPTIONS:
        if option.name in training:
            findings += _value_findings(("training", option.name), option, training, OPTIONS)
    return findings


def _overlaps(
    plain: Mapping[str, Any],
    schemas: Mapping[str, MethodSchema],
    rules: Mapping[str, RuleSchema],
    where: str,
    key: str,
) -> list[Fault]:
    """Two groups of one method at one place; only the canonical form can tell."""
    try:
        complete_configuration(plain, schemas, dict.fromkeys(TRAINING_KEYS, 0.0), rules=rules)
    except SpaceError as error:
        return [
            Fault(where, f"{key}.{fault.key}".strip("."), fault.given, fault.allowed, fault.hint)
            for fault in error.faults
        ]
    return []


def _did_you_mean(name: str) -> str:
    return f"did you mean `{name}`?" if name else ""


def _fault(finding: Finding, where: str, key: str) -> Fault:
    parts = [key, *map(str, finding.key)] if key else [*map(str, finding.key)]
    return Fault(where, ".".join(parts), finding.given, finding.allowed, finding.hint)
