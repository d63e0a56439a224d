"""One dimension of a bound space: its legal values, and their place in the unit interval.

A discrete dimension with n ordered values has value i at i / (n - 1) and decodes u to value
floor(u * n): each value owns an equal share of the interval, and the extremes lie at 0 and 1.
Reals lie linearly or by their logarithm, as do whole numbers with `log`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from autopeft.errors import Fault, SpaceError
from autopeft.space.schema import Scalar

Point: TypeAlias = Mapping[str, Scalar]
"""Values of the active dimensions by name; see `autopeft.space.space.BoundSpace`."""

Kind: TypeAlias = Literal["flag", "ordered", "category", "integer", "real"]

_PERTURBATION = 0.15
"""Standard deviation of a small change of a number, as a share of its dimension."""

_REAL_DIGITS = 6
"""Digits kept of a real: readable in YAML, finer than any training can tell apart."""


@dataclass(frozen=True)
class Dimension:
    """What may vary, and within which values.

    Attributes:
        name: Dotted, such as `lora.rank`, `lora.layers.3`, `training.learning_rate`.
        kind: `flag` (off, on), `ordered` (listed numbers), `category` (names without an order),
            `integer` (a range of whole numbers) or `real`.
        values: Legal values in order; () for a real.
        low: Smallest value of a real.
        high: Largest value of a real.
        log: Whether steps of an `integer` or `real` are equal in the logarithm.
    """

    name: str
    kind: Kind
    values: Sequence[Scalar] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def flag(cls, name: str) -> "Dimension":
        """A dimension that is off or on."""
        return cls(name, "flag", (False, True))

    @property
    def continuous(self) -> bool:
        """Whether it is a real."""
        return self.kind == "real"

    def read(self, raw: Mapping[str, Scalar]) -> Scalar:
        """Its value in `raw`, normalised.

        Raises:
            SpaceError: The value is missing or not legal.
        """
        value = raw.get(self.name)
        if value is None:
            raise SpaceError(Fault("point", self.name, "no value", self.allowed))
        if self.continuous:
            if isinstance(value, str) or not self.low <= value <= self.high:
                raise SpaceError(Fault("point", self.name, str(value), self.allowed))
            return self._rounded(float(value))
        try:
            return self.values[self.values.index(value)]
        except ValueError:
            raise SpaceError(Fault("point", self.name, str(value), self.allowed)) from None

    @property
    def allowed(self) -> str:
        """The legal values as short text."""
        if self.continuous:
            return f"a number from {self.low:g} to {self.high:g}"
        if isinstance(self.values, range):
            return f"a whole number from {self.values[0]} to {self.values[-1]}"
        return ", ".join(str(value) for value in self.values)

    # -- the unit interval --------------------------------------------------------------------

    def encode(self, value: Scalar) -> float:
        """The place of a legal value in [0, 1]."""
        if self.continuous or self.log:
            (low, high), place = self._bounds(), float(value)
            if self.log:
                low, high, place = math.log(low), math.log(high), math.log(place)
            return min(max((place - low) / (high - low), 0.0), 1.0)
        return self.values.index(value) / (len(self.values) - 1)

    def decode(self, u: float) -> Scalar:
        """The value at a place in [0, 1]; places beyond are clipped."""
        u = min(max(float(u), 0.0), 1.0)
        if not (self.continuous or self.log):
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        low, high = self._bounds()
        if self.log:
            value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        else:
            value = low + u * (high - low)
        if self.continuous:
            return self._rounded(value)
        return min(max(round(value), int(self.values[0])), int(self.values[-1]))

    def _bounds(self) -> tuple[float, float]:
        """The interval that [0, 1] stands for; whole numbers own half a step on either side."""
        if self.continuous:
            return self.low, self.high
        return float(self.values[0]) - 0.5, float(self.values[-1]) + 0.5

    def _rounded(self, value: float) -> float:
        if self.log:
            value = float(f"{value:.{_REAL_DIGITS}g}")
        else:
            span = math.floor(math.log10(self.high - self.low))
            value = round(value, _REAL_DIGITS - span)
        return min(max(value, self.low), self.high)

    # -- chance -------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator) -> Scalar:
        """A value, uniform in the unit interval."""
        return self.decode(rng.random())

    def sample_size(self, rng: np.random.Generator) -> Scalar:
        """A value other than 0, log-uniform whatever the grid: small sizes as often as large."""
        if self.continuous:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return self._rounded(drawn)
        if isinstance(self.values, range):
            low, high = max(self.values[0], 1), self.values[-1]
            drawn = math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return min(max(round(drawn), low), high)
        values = [value for value in self.values if value != 0]
        if len(values) == 1:
            return values[0]
        sizes = np.asarray(values, dtype=np.float64)
        inner = np.sqrt(sizes[1:] * sizes[:-1])
        edges = np.concatenate([sizes[:1] ** 2 / inner[:1], inner, sizes[-1:] ** 2 / inner[-1:]])
        weights = np.diff(np.log(edges))
        return values[int(rng.choice(len(sizes), p=weights / weights.sum()))]

    def near(self, value: Scalar, rng: np.random.Generator) -> Scalar:
        """Another value, mostly close by; may equal `value` where rounding makes it so."""
        if self.kind == "flag":
            return not value
        if self.continuous or self.log:
            step = float(rng.normal(0.0, _PERTURBATION))
            moved = self.decode(self.encode(value) + step)
            if self.continuous or moved != value:
                return moved
        index, n = self.values.index(value), len(self.values)
        if self.kind == "category" or rng.random() < 0.3:
            return self.values[(index + int(rng.integers(1, n))) % n]
        step = 1 if index == 0 or (index < n - 1 and rng.random() < 0.5) else -1
        return self.values[index + step]

    def nearest(self, size: float) -> Scalar:
        """The value other than 0 closest to `size` by ratio."""
        if self.continuous:
            return self._rounded(min(max(size, self.low), self.high))
        if isinstance(self.values, range):
            return min(max(round(size), self.values[0], 1), self.values[-1])
        sizes = [value for value in self.values if value != 0]
        return min(sizes, key=lambda value: (abs(math.log(float(value) / size)), value))

    def closest(self, value: Scalar) -> Scalar:
        """The legal value closest to any other: by ratio where all are positive; a name's own."""
        if self.kind in ("flag", "category"):
            return value if value in self.values else self.values[0]
        wanted = float(value)
        if self.continuous:
            return self._rounded(min(max(wanted, self.low), self.high))
        if isinstance(self.values, range):
            return min(max(round(wanted), self.values[0]), self.values[-1])
        numbers = [float(each) for each in self.values]
        if wanted > 0.0 and min(numbers) > 0.0:
            return min(self.values, key=lambda each: abs(math.log(float(each) / wanted)))
        return min(self.values, key=lambda each: abs(float(each) - wanted))

    def to_dict(self) -> dict[str, Any]:
        """A plain description."""
        plain: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.continuous:
            return plain | {"low": self.low, "high": self.high, "log": self.log}
        if self.kind == "integer":
            return plain | {"low": self.values[0], "high": self.values[-1], "log": self.log}
        return plain | {"values": list(self.values)}
