"""What is wrong within a value that somebody wrote, whoever reads it; needs no other library."""

from dataclasses import dataclass

Loc = tuple[int | str, ...]


@dataclass(frozen=True)
class Finding:
    """A fault within a value: `key` is relative to the value, () where the whole is meant."""

    key: Loc
    given: str
    allowed: str
    hint: str = ""
