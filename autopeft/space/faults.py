"""Collects the faults of one input, so that all of them are told at once."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from autopeft.errors import Fault, InputError, SpaceError
from autopeft.passwords import blotted


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, or ""."""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1)
    return lowered[close[0]] if close else ""


def shown(value: Any) -> str:
    """A value as short text in YAML's spelling."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | Fraction):
        # Blotted before it is cut short: a password without its end would not be known as one.
        return reprlib.repr(blotted(str(value)))[1:-1] if str(value) else '""'
    if isinstance(value, list | tuple):
        inner = ", ".join(shown(item) for item in value[:6])
        return f"[{inner}{', ...' if len(value) > 6 else ''}]"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(str, list(value)[:6])) or '(none)'}"
    return reprlib.repr(value)


class Faults:
    """The faults found so far in one input.

    Args:
        where: The file, or what stands for it.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._faults: list[Fault] = []

    def add(self, key: str, given: Any, allowed: str, hint: str = "") -> None:
        """Note a fault at a dotted key; `given` is shortened to text."""
        self._faults.append(Fault(self.where, key, shown(given), allowed, hint))

    def unknown(
        self,
        key: str,
        name: str,
        known: Iterable[str],
        spellings: Mapping[str, str] | None = None,
    ) -> None:
        """Note an unknown name, with the known one that it spells or resembles."""
        known = tuple(known)
        ours = (spellings or {}).get(str(name)) or nearest(name, known)
        self.add(key, name, ", ".join(known) or "nothing", f"write {ours}" if ours else "")

    def raise_if_any(self, kind: type[InputError] = SpaceError) -> None:
        """Raise them all as one error, if there are any."""
        if self._faults:
            raise kind(self._faults)
