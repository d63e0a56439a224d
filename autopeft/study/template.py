r"""Texts made of a row's columns: `question`, or a template such as "{instruction}\n{input}".

The braces are those of Python's format strings, without formats: `{name}` is a column, whatever
is in its name, and `{{` and `}}` are braces.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A text with places for columns.

    Attributes:
        parts: Pairs of a text and the column that follows it, None at the end.
    """

    parts: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once, in the order of their first place."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def fill(self, row: Mapping[str, str]) -> str:
        """The text of a row that has every column."""
        return "".join(
            text + ("" if column is None else row[column]) for text, column in self.parts
        )


def parse_template(written: str) -> Template:
    """The template of a column's name or of a text with columns in braces.

    Raises:
        ValueError: Braces that do not match, without a name, or with a format; or no column.
    """
    if "{" not in written and "}" not in written:
        return Template((("", written),))
    parts = []
    for text, column, form, conversion in string.Formatter().parse(written):
        if form or conversion:
            raise ValueError(f"a place that is more than a column's name: {{{column}...}}")
        if column is not None and not column.strip():
            raise ValueError("a place without a column's name: {}")
        parts.append((text, column))
    if all(column is None for _, column in parts):
        raise ValueError("no place for a column")
    return Template(tuple(parts))
