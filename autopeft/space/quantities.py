"""Numbers, bytes and durations as people write them: `3e-5`, `2M`, `1/128`, `20GiB`, `24h`.

YAML leaves these as strings (or reads them wrongly), so every key that takes a quantity goes
through one of these functions. A `ValueError` says what was given and what is allowed.
"""

import math
import re
from fractions import Fraction

_DECIMAL = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"({_DECIMAL})\s*([kKMGBT]?)")
_FRACTION = re.compile(r"(\d+)\s*/\s*(\d+)")
_BYTES = re.compile(rf"({_DECIMAL})\s*([kKMGTP]i?)?B?")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")

_MAGNITUDE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTE_POWERS = "KMGTP"

_LARGEST = 1e300
"""Beyond it arithmetic overflows, and no setting means it."""

_NUMBERS_ALLOWED = "a number such as 8, 3e-5, 1.5k or 2M"
_FRACTIONS_ALLOWED = "a fraction such as 1/128, or a number"
_BYTES_ALLOWED = "a size such as 512MiB, 20GiB or 20GB"
_DURATIONS_ALLOWED = "a duration with its unit, such as 90s, 45m, 24h, 1d or 1h30m"


def parse_number(value: str | float) -> int | float:
    """The number that `value` stands for; `k`, `M`, `G` (or `B`) and `T` are powers of 1000.

    Whole numbers without a point or exponent, and whole multiples of a suffix, are `int`.

    Raises:
        ValueError: It is no finite number.
    """
    if isinstance(value, str):
        value = _number_from_text(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -_LARGEST <= value <= _LARGEST
    ):
        raise ValueError(f"got {value!r}; allowed: {_NUMBERS_ALLOWED}")
    return value


def _number_from_text(text: str) -> int | float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"got {text!r}; allowed: {_NUMBERS_ALLOWED}")
    digits, suffix = match.groups()
    if re.fullmatch(r"[-+]?\d+", digits):
        return int(digits) * _MAGNITUDE[suffix]
    if not suffix:
        return float(digits)
    scaled = Fraction(digits) * _MAGNITUDE[suffix]
    return int(scaled) if scaled.denominator == 1 else float(scaled)


def parse_fraction(value: str | float) -> Fraction:
    """The exact fraction of `1/128`, or of a number.

    Raises:
        ValueError: It is neither, or the denominator is 0.
    """
    if isinstance(value, str) and (match := _FRACTION.fullmatch(value.strip())):
        numerator, denominator = map(int, match.groups())
        if denominator:
            return Fraction(numerator, denominator)
    try:
        return Fraction(str(parse_number(value)))
    except ValueError as error:
        raise ValueError(f"got {value!r}; allowed: {_FRACTIONS_ALLOWED}") from error


def parse_bytes(value: str | int) -> int:
    """Bytes: `20GiB` (powers of 1024), `20GB` (powers of 1000), or a whole number of bytes.

    Raises:
        ValueError: It is no size, is negative, or says `20G`, which could mean either.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or (match[2] and not match[0].endswith("B")) or match[1].startswith("-"):
        raise ValueError(f"got {value!r}; allowed: {_BYTES_ALLOWED}")
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    power = _BYTE_POWERS.index(unit[0].upper()) + 1 if unit else 0
    return int(Fraction(match[1]) * base**power)


def parse_duration_s(value: str) -> float:
    """Seconds of `90s`, `45m`, `24h`, `1d` or `1h30m`.

    Raises:
        ValueError: It is no duration, is 0, or lacks its unit (a bare number is no duration).
    """
    text = value.strip() if isinstance(value, str) else ""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"got {value!r}; allowed: {_DURATIONS_ALLOWED}")
    seconds = math.fsum(
        float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)
    )
    if seconds <= 0 or not math.isfinite(seconds):
        raise ValueError(f"got {value!r}; allowed: {_DURATIONS_ALLOWED}, more than 0")
    return seconds
