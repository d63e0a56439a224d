"""How a single value of a study file is read: one small function per sort of value.

A reader takes what YAML gave and returns the value as the study keeps it, or raises a refusal
that says what is allowed. Nothing is coerced but numbers, byte counts and durations written as
text ("2M", "20GiB", "24h"); a bool is no number, and nothing is infinite.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from autopeft.space.faults import shown
from autopeft.space.quantities import parse_bytes, parse_duration_s, parse_number
from autopeft.study.faults import LATER, did_you_mean, refusal, refusals
from autopeft.study.findings import Finding

Reader = Callable[[Any], Any]


def string(allowed: str = "a text", *, pattern: str = r"(?s).*\S.*") -> Reader:
    """Reads a string that matches the whole pattern; by default any that is not blank."""

    def read(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        hint = f'put it in quotes: "{value}"' if _is_number(value) else ""
        raise refusal(value, allowed, hint)

    return read


def whole(minimum: int, maximum: int | None = None, *, hint: str = "") -> Reader:
    """Reads an int; text and floats are refused."""
    allowed = f"a whole number >= {minimum}" + (f", <= {maximum}" if maximum is not None else "")

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise refusal(value, allowed, "write it without quotes" if _digits(value) else hint)
        if value < minimum or (maximum is not None and value > maximum):
            raise refusal(value, allowed, hint)
        return value

    return read


def number(
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> Reader:
    """Reads a finite number, also as text such as "2M" or "3e-5", within bounds, as a float."""
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", minimum), ("<", below), ("<=", maximum))
        if bound is not None
    ]
    allowed = " ".join(["a number", " and ".join(bounds)]).strip()

    def read(value: Any) -> float:
        result = _parsed(value, parse_number, allowed)
        too_low = (above is not None and result <= above) or (
            minimum is not None and result < minimum
        )
        too_high = (below is not None and result >= below) or (
            maximum is not None and result > maximum
        )
        if too_low or too_high:
            raise refusal(value, allowed)
        return float(result)

    return read


def flag(value: Any) -> bool:
    """True or false, as YAML writes them."""
    if not isinstance(value, bool):
        raise refusal(value, "true or false")
    return value


def bound(value: Any, *, in_bytes: bool) -> float | int:
    """A cap or floor: a number ("2M"), or a byte count ("20MiB"); an int where it is whole."""
    if in_bytes:
        result = _parsed(value, parse_bytes, "a byte count such as 20MiB")
    else:
        result = _parsed(value, parse_number, "a number such as 0.9 or 2M")
    return int(result) if float(result).is_integer() else result


def size_bytes(value: Any) -> int:
    """A byte count ("20MiB"), 0 or more."""
    return int(_parsed(value, parse_bytes, "a byte count such as 2GiB"))


def duration_s(value: Any) -> float:
    """A duration above zero with its unit ("45m", "24h", "1d"), in seconds."""
    allowed = "a duration with its unit, such as 45m, 24h or 1d"
    if not isinstance(value, str):
        raise refusal(value, allowed, f"did you mean {value}h?" if _is_number(value) else "")
    result = _parsed(value, parse_duration_s, allowed)
    if result <= 0:
        raise refusal(value, allowed)
    return float(result)


def device_list(value: Any) -> str:
    """Reads where to train: `auto`, or devices with commas between them (or as a list)."""
    named = value if isinstance(value, (list, tuple)) else str(value).split(",")
    names = [str(each).strip() for each in named]
    if names == ["auto"]:
        return "auto"
    kinds = {name.partition(":")[0] for name in names}
    if len(kinds) != 1 or not all(re.fullmatch(r"(cpu|mps|cuda(:\d+)?)", each) for each in names):
        hint = "cuda is every GPU that can be seen; cpu,cpu are two processes on the CPU"
        raise refusal(value, "auto, cpu, mps, cuda, or such as cuda:0,cuda:1", hint)
    twice = sorted({name for name in names if names.count(name) > 1 and name != "cpu"})
    if twice or (len(names) > 1 and "cuda" in names):
        raise refusal(value, "every GPU once, by its number")
    return ",".join(names)


def one_of(
    *names: Any, later: Sequence[Any] = (), aliases: Mapping[str, str] | None = None
) -> Reader:
    """Reads one of some names; `later` ones are known but refused as not available yet."""
    allowed = ", ".join(shown(name) for name in names)
    known = [name for name in (*names, *later) if isinstance(name, str)]

    def read(value: Any) -> Any:
        value = (aliases or {}).get(value, value) if isinstance(value, str) else value
        if any(value is name or (isinstance(value, str) and value == name) for name in names):
            return value
        if value in later and isinstance(value, (str, bool)):
            raise refusal(value, allowed, f"{shown(value)} is {LATER}")
        raise refusal(value, allowed, did_you_mean(value, known))

    return read


def nullable(read: Reader) -> Reader:
    """Reads what `read` reads, or null."""
    return lambda value: None if value is None else read(value)


def auto_or(read: Reader) -> Reader:
    """Reads what `read` reads, or the word `auto`."""
    return lambda value: value if value == "auto" else read(value)


def each(read: Reader, *, allowed: str, least: int = 0, most: int | None = None) -> Reader:
    """Reads a list of what `read` reads, as a tuple; a single text counts as a list of one.

    Faults name the item; doubled items are refused.
    """

    def read_all(value: Any) -> tuple[Any, ...]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise refusal(value, allowed)
        if len(items) < least or (most is not None and len(items) > most):
            raise refusal(value, allowed)
        result = tuple(collected((index, item, read) for index, item in enumerate(items)))
        if any(item in result[:index] for index, item in enumerate(result)):
            raise refusal(value, f"{allowed}, none of them twice")
        return result

    return read_all


def collected(parts: Iterable[tuple[int | str, Any, Reader]]) -> list[Any]:
    """What (key, value, reader) triples read, or one refusal with the faults of all of them."""
    values: list[Any] = []
    findings: list[Finding] = []
    for key, value, read in parts:
        try:
            values.append(read(value))
        except PydanticCustomError as error:
            for finding in (error.context or {})["findings"]:
                findings.append(
                    Finding((key, *finding.key), finding.given, finding.allowed, finding.hint)
                )
    if findings:
        raise refusals(findings)
    return values


def json_value(value: Any) -> Any:
    """A plain value as JSON can carry it: mappings with text keys, lists, finite scalars."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise refusal(value, "keys that are texts", "put the keys in quotes")
        values = collected((key, inner, json_value) for key, inner in value.items())
        return dict(zip(value, values, strict=True))
    if isinstance(value, (list, tuple)):
        return collected((index, inner, json_value) for index, inner in enumerate(value))
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise refusal(value, "a text, a finite number, true, false, null, a list or a block")


def _parsed(value: Any, parse: Callable[[str], float], allowed: str) -> float:
    if not _is_number(value) and not isinstance(value, str):
        raise refusal(value, allowed)
    try:
        result: float = parse(value) if isinstance(value, str) else value
        if math.isfinite(result):
            return result
    except (ValueError, OverflowError) as error:  # not a number, or beyond any float
        raise refusal(value, allowed) from error
    raise refusal(value, allowed)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _digits(value: Any) -> bool:
    return isinstance(value, str) and value.strip().isdigit()
