"""From what pydantic refuses to faults a user can act on.

Readers raise `refusal` (one fault) or `refusals` (several within one value); `faults_of` turns a
whole `ValidationError` into faults in the order of the input, with nearest names for unknown keys.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from autopeft.errors import Fault
from autopeft.space.faults import nearest, shown
from autopeft.study.findings import Finding, Loc
from autopeft.study.spellings import our_key

LATER = "not available in this release"


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """A hint that gives the nearest name, or ""."""
    close = nearest(str(name), names)
    return f"did you mean `{close}`?" if close else ""


def refusal(value: object, allowed: str, hint: str = "") -> PydanticCustomError:
    """What a reader raises for one fault."""
    return refusals([Finding((), shown(value), allowed, hint)])


def refusals(findings: Sequence[Finding]) -> PydanticCustomError:
    """What a reader raises for several faults within its value."""
    return PydanticCustomError("refused", "refused", {"findings": tuple(findings)})


def faults_of(
    error: ValidationError, root: type[BaseModel], plain: Mapping[str, Any], where: str
) -> list[Fault]:
    """All faults of a validation, in the order in which they stand in the input.

    Args:
        error: What validating `plain` against `root` raised.
        root: The model.
        plain: The input.
        where: The file or flag it came from.
    """
    found: list[tuple[Loc, Fault]] = []
    for details in error.errors(include_url=False):
        found += [(loc, _fault(loc, finding, where)) for loc, finding in _findings(details, root)]
    renamed = {our_key(loc[-1]) for loc, fault in found if fault.given == _UNKNOWN}
    order = {loc: index for index, loc in enumerate(_walk(plain))}
    found.sort(key=lambda item: _position(item[0], order))
    return [
        fault
        for _, fault in found
        if not (fault.given == _MISSING and fault.key in renamed)  # given under another name
    ]


_UNKNOWN = "an unknown key"
_MISSING = "nothing"


def _fault(loc: Loc, finding: Finding, where: str) -> Fault:
    key = ".".join(str(part) for part in loc)
    return Fault(where, key, finding.given, finding.allowed, finding.hint)


def _findings(details: ErrorDetails, root: type[BaseModel]) -> list[tuple[Loc, Finding]]:
    loc, kind = tuple(details["loc"]), details["type"]
    if kind == "refused":
        return [(loc + f.key, f) for f in details["ctx"]["findings"]]
    if kind in ("extra_forbidden", "invalid_key"):
        return [(loc, _unknown_key(loc, root))]
    if kind == "missing":
        model = model_at(root, loc[:-1])
        field = model.model_fields[str(loc[-1])] if model else None
        return [(loc, Finding((), _MISSING, (field and field.description) or "a value"))]
    block = model_at(root, loc)
    allowed = f"keys {', '.join(keys_of(block))}" if block else details["msg"]
    return [(loc, Finding((), shown(details["input"]), allowed))]


def _unknown_key(loc: Loc, root: type[BaseModel]) -> Finding:
    model = model_at(root, loc[:-1])
    names = keys_of(model) if model else []
    ours = our_key(loc[-1]) or (
        None if nearest(str(loc[-1]), names) else _elsewhere(loc[-1], root)
    )
    hint = f"write it as `{ours}`" if ours else did_you_mean(loc[-1], names)
    return Finding((), _UNKNOWN, ", ".join(names), hint)


def _elsewhere(name: object, root: type[BaseModel]) -> str | None:
    """The dotted key of ours that has this name in another block."""
    for block, field in root.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None and name in inner.model_fields:
            return f"{block}.{name}"
    return None


def keys_of(model: type[BaseModel]) -> list[str]:
    """A block's keys as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]


def model_at(root: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """The block at a place, or None where there is a plain value."""
    model: type[BaseModel] | None = root
    for part in loc:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = _model_of(model.model_fields[part].annotation)
    return model


def _model_of(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _walk(value: object, loc: Loc = ()) -> Iterable[Loc]:
    """Every place of a plain value, in reading order."""
    yield loc
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, (*loc, key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _walk(inner, (*loc, index))


def _position(loc: Loc, order: Mapping[Loc, int]) -> tuple[int, int]:
    """Where a place stands; what is missing stands behind its block's first line."""
    missing = 0
    while loc not in order:
        loc, missing = loc[:-1], missing + 1
    return order[loc], missing
