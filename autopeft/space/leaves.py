"""The leaves of a space: what a parameter may be, as a file says it.

    8                                     fixed
    {choice: [1, 2, 4]}                   one of the listed values
    {choice: [true, pissa]}               the same, where names stand beside true and false
    {choice: [0, 1/8], of: hidden_size}   shares of one of the backbone's widths
    {int: [1, 64], log: true}             a range of whole numbers
    {float: [1e-4, 5e-3], log: true}      a range of reals
    {subset: [query, value]}              any of the listed sites

A leaf knows no backbone; `bind` gives its dimension there, or its value where there is no choice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

from autopeft.space.dimension import Dimension, Kind
from autopeft.space.faults import Faults, shown
from autopeft.space.quantities import parse_fraction, parse_number
from autopeft.space.schema import ParameterSchema, Scalar, Shape


@dataclass(frozen=True)
class Fixed:
    """One value."""

    value: Scalar

    def bind(self, name: str, shape: Shape) -> Dimension | Scalar:
        """The value."""
        return self.value

    def to_dict(self) -> Any:
        """As in YAML."""
        return self.value


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        values: Numbers ascending, other values as listed; `Fraction` where `of` is given.
        of: The backbone's width that the values are shares of, or "".
    """

    values: tuple[Scalar | Fraction, ...]
    of: str = ""

    def bind(self, name: str, shape: Shape) -> Dimension | Scalar:
        """The dimension; shares become whole sizes, floored but at least 1, equal ones merged."""
        values: list[Scalar] = []
        for value in self.values:
            scalar = self._size(value, shape) if isinstance(value, Fraction) else value
            if scalar not in values:
                values.append(scalar)
        if len(values) == 1:
            return values[0]
        if any(isinstance(value, str) for value in values):
            return Dimension(name, "category", tuple(values))
        if isinstance(values[0], bool):
            return Dimension.flag(name)
        kind: Kind = "ordered"
        return Dimension(name, kind, tuple(values))

    def _size(self, share: Fraction, shape: Shape) -> int:
        return max(1, math.floor(share * shape.dimensions[self.of])) if share else 0

    def to_dict(self) -> Any:
        """As in YAML."""
        if self.of:
            return {"choice": [str(value) for value in self.values], "of": self.of}
        return {"choice": list(self.values)}


@dataclass(frozen=True)
class IntRange:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    log: bool = False

    def bind(self, name: str, shape: Shape) -> Dimension | Scalar:
        """The dimension, or the value where low = high."""
        if self.low == self.high:
            return self.low
        return Dimension(name, "integer", range(self.low, self.high + 1), log=self.log)

    def to_dict(self) -> Any:
        """As in YAML."""
        return {"int": [self.low, self.high], "log": self.log}


@dataclass(frozen=True)
class FloatRange:
    """A real from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False

    def bind(self, name: str, shape: Shape) -> Dimension | Scalar:
        """The dimension, or the value where low = high."""
        if self.low == self.high:
            return self.low
        return Dimension(name, "real", low=self.low, high=self.high, log=self.log)

    def to_dict(self) -> Any:
        """As in YAML."""
        return {"float": [self.low, self.high], "log": self.log}


Leaf: TypeAlias = Fixed | Choice | IntRange | FloatRange

_KEYS = {"choice": {"choice", "of"}, "int": {"int", "log"}, "float": {"float", "log"}}
_FORMS = {
    "int": "a whole number, {choice: [...]} or {int: [low, high]}",
    "float": "a number, {choice: [...]} or {float: [low, high]}",
    "bool": "true, false or {choice: [true, false]}",
    "str": "a name or {choice: [...]}",
    "bool|str": "true, false, a name or {choice: [...]}",
}


class _LeafReader:
    """Reads one parameter's leaf; notes faults under its key.

    Args:
        parameter: What is legal.
        key: The parameter's dotted key.
        faults: Where faults are noted.
        is_size: Whether 0 is legal beside other values, where it means "absent".
    """

    def __init__(
        self, parameter: ParameterSchema, key: str, faults: Faults, *, is_size: bool
    ) -> None:
        self.parameter = parameter
        self.key = key
        self.faults = faults
        self.is_size = is_size

    def read(self, raw: Any) -> Leaf | None:
        """The leaf, or None where a fault was noted."""
        if not isinstance(raw, Mapping):
            return self._fixed(raw)
        kinds = [kind for kind in _KEYS if kind in raw]
        if len(kinds) != 1:
            self.faults.add(self.key, raw, _FORMS[self.parameter.kind])
            return None
        kind = kinds[0]
        for name in raw:
            if name not in _KEYS[kind]:
                self.faults.unknown(f"{self.key}.{name}", name, sorted(_KEYS[kind] - {kind}))
                return None
        if kind == "choice":
            return self._choice(raw["choice"], raw.get("of"))
        if kind != self.parameter.kind:
            self.faults.add(self.key, kind, _FORMS[self.parameter.kind])
            return None
        return self._range(raw[kind], raw.get("log", False))

    def _fixed(self, raw: Any) -> Fixed | None:
        if isinstance(raw, list):
            hint = f"write {{choice: {shown(raw)}}}"
            self.faults.add(self.key, raw, _FORMS[self.parameter.kind], hint)
            return None
        value = self._value(raw, self.key, zero=False)
        return None if value is None else Fixed(value)

    def _choice(self, raw: Any, of: Any) -> Choice | None:
        key = f"{self.key}.choice"
        if not isinstance(raw, list) or not raw:
            self.faults.add(key, raw, "a list of at least one value")
            return None
        if of is not None:
            return self._shares(raw, of)
        values = [self._value(item, key, zero=len(raw) > 1) for item in raw]
        if any(value is None for value in values):
            return None
        legal = [value for value in values if value is not None]
        if not self._distinct(legal, key):
            return None
        ordered = self.parameter.kind in ("int", "float")
        return Choice(tuple(sorted(legal, key=float) if ordered else legal))

    def _shares(self, raw: list[Any], of: Any) -> Choice | None:
        whole = self.is_size and self.parameter.kind == "int"
        if not whole or not isinstance(of, str):
            self.faults.add(f"{self.key}.of", of, "the name of a width, and only for a whole size")
            return None
        shares: list[Fraction] = []
        for item in raw:
            try:
                share = parse_fraction(item)
            except ValueError:
                share = Fraction(-1)
            if share < 0 or (share == 0 and len(raw) == 1):
                allowed = "a positive share such as 1/128" + (", or 0" if len(raw) > 1 else "")
                self.faults.add(f"{self.key}.choice", item, allowed)
                return None
            shares.append(share)
        if not self._distinct(shares, f"{self.key}.choice"):
            return None
        return Choice(tuple(sorted(shares)), of)

    def _range(self, raw: Any, log: Any) -> IntRange | FloatRange | None:
        key = f"{self.key}.{self.parameter.kind}"
        if not isinstance(raw, list) or len(raw) != 2:
            self.faults.add(key, raw, "[low, high]")
            return None
        low, high = (self._value(item, key, zero=True) for item in raw)
        if low is None or high is None:
            return None
        low, high = float(low), float(high)
        if low > high:
            self.faults.add(key, raw, "low at most high", f"write [{raw[1]}, {raw[0]}]")
        elif not isinstance(log, bool):
            self.faults.add(f"{self.key}.log", log, "true or false")
        elif log and low <= 0:
            self.faults.add(key, raw, "low above 0, as log is true")
        elif self.is_size and high == 0:
            self._absent_only(0, key)
        elif self.is_size and low == 0 and self.parameter.kind == "float":
            hint = "0 means absent: give the method `present: {choice: [true, false]}` for that"
            self.faults.add(key, raw, "low above 0", hint)
        elif self.parameter.kind == "int":
            return IntRange(int(low), int(high), log)
        else:
            return FloatRange(low, high, log)
        return None

    def _distinct(self, values: list[Any], key: str) -> bool:
        for index, value in enumerate(values):
            if value in values[:index]:
                self.faults.add(key, value, "each value once", "remove the second one")
                return False
        return True

    def _value(self, raw: Any, key: str, *, zero: bool) -> Scalar | None:
        """The legal value that `raw` stands for, or None and a fault."""
        value = _typed(raw, self.parameter)
        if value is not None and self.is_size and value == 0:
            if zero:
                return 0
            self._absent_only(raw, key)
            return None
        if value is None or not _within(value, self.parameter):
            hint = self.parameter.why_not(raw)
            self.faults.add(key, raw, allowed_values(self.parameter), hint)
            return None
        return value

    def _absent_only(self, raw: Any, key: str) -> None:
        hint = "0 means absent: list it beside other sizes, or remove the method"
        self.faults.add(key, raw, allowed_values(self.parameter), hint)


def read_leaf(
    raw: Any, parameter: ParameterSchema, key: str, faults: Faults, *, is_size: bool = False
) -> Leaf | None:
    """The leaf that `raw` writes for a parameter, or None where a fault was noted.

    Args:
        raw: What the file holds.
        parameter: What is legal.
        key: The parameter's dotted key.
        faults: Where faults are noted.
        is_size: Whether 0 is legal beside other values, where it means "absent".
    """
    return _LeafReader(parameter, key, faults, is_size=is_size).read(raw)


def parents_first(parameters: Sequence[ParameterSchema]) -> list[ParameterSchema]:
    """The parameters in order, but each after the one that its `when` names."""
    by_name = {parameter.name: parameter for parameter in parameters}

    def depth(parameter: ParameterSchema) -> int:
        return 1 + depth(by_name[parameter.when[0]]) if parameter.when else 0

    return sorted(parameters, key=depth)


def can_matter(parameter: ParameterSchema, leaves: Mapping[str, Leaf]) -> bool:
    """Whether the parameter's condition can hold, given the leaves of those before it."""
    if parameter.when is None:
        return True
    parent = leaves.get(parameter.when[0])
    if isinstance(parent, Fixed):
        return parameter.means(parent.value)
    return not isinstance(parent, Choice) or any(map(parameter.means, parent.values))


def refuse_unused(parameter: ParameterSchema, raw: Any, key: str, faults: Faults) -> None:
    """Note that a parameter is given whose condition cannot hold."""
    if parameter.when is not None:
        name, needed = parameter.when
        hint = f"remove it, or let {name} be {shown(needed)}"
        faults.add(key, raw, f"nothing, as {name} is not {shown(needed)}", hint)


def default_leaf(parameter: ParameterSchema) -> Fixed:
    """The leaf of a parameter that has a default and is not given."""
    default = parameter.default
    if default is None:
        raise ValueError(f"{parameter.name} has no default")
    return Fixed(float(default) if parameter.kind == "float" else default)


def may_be_measured(parameter: ParameterSchema, leaf: Leaf) -> bool:
    """Whether some value of the leaf needs an importance map."""
    values = leaf.values if isinstance(leaf, Choice) else ()
    values = (leaf.value,) if isinstance(leaf, Fixed) else values
    return any(value in parameter.measured for value in values)


def allowed_values(parameter: ParameterSchema) -> str:
    """A parameter's legal values as short text."""
    if parameter.kind == "bool":
        return " or ".join(parameter.words)
    if parameter.kind in ("str", "bool|str"):
        return "one of " + ", ".join(parameter.words) if parameter.words else "text"
    noun = "a whole number" if parameter.kind == "int" else "a number"
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        return f"{noun} from {low:g} to {high:g}"
    if low is not None:
        return f"{noun} of at least {low:g}"
    return f"{noun} of at most {high:g}" if high is not None else noun


def _typed(raw: Any, parameter: ParameterSchema) -> Scalar | None:
    """`raw` as the parameter's type, or None where it is of another."""
    if parameter.kind in ("bool", "str", "bool|str"):
        return raw if parameter.admits(raw) else None
    try:
        number = parse_number(raw)
    except ValueError:
        return None
    if parameter.kind == "float":
        return float(number)
    return int(number) if number == int(number) else None


def _within(value: Scalar, parameter: ParameterSchema) -> bool:
    if isinstance(value, bool | str):
        return parameter.admits(value)
    low, high = parameter.minimum, parameter.maximum
    return (low is None or value >= low) and (high is None or value <= high)
