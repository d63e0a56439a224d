"""Tables of many rows, drawn at once.

Rich lays out every cell by itself, which takes a millisecond a row: half a second for a study of
500 trials. Here a line is put together from texts that know their width, and only what does not
fit is left to Rich to fold. The tables look the same.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

GAP = 3
"""Blanks between columns."""


class ListTable:
    """Rows of text under a heading; Rich prints it like any of its own tables.

    Args:
        columns: Their headings.
        right: Columns that are aligned to the right.
    """

    def __init__(self, *columns: str, right: Collection[str] = ()) -> None:
        self.columns, self._right = columns, [column in right for column in columns]
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """One row, a text for each column; what would move a terminal's cursor is left out."""
        self.rows.append(tuple(map(_printable, cells)))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Its lines; what the width has no room for is folded, in the widest columns first."""
        from rich.segment import Segment
        from rich.style import Style

        widths = _widths([self.columns, *self.rows], options.max_width - 2)
        rule = ("-" if options.ascii_only else "─") * (sum(widths) + GAP * (len(widths) - 1))
        yield Segment("\n")
        for line in self._lines(console, self.columns, widths):
            yield Segment(line, Style(bold=True))
            yield Segment("\n")
        yield Segment(f" {rule}\n")
        for row in self.rows:
            for line in self._lines(console, row, widths):
                yield Segment(f"{line}\n")
        yield Segment("\n")

    def _lines(
        self, console: "Console", row: Sequence[str], widths: Sequence[int]
    ) -> Iterator[str]:
        """A row as the lines that it takes."""
        folded = [_folded(console, *each) for each in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            cells = map(_aligned, parts, widths, self._right)
            yield f" {(' ' * GAP).join(cells)}".rstrip()


def _printable(cell: str) -> str:
    text = " ".join(cell.split())
    return text if text.isprintable() else "".join(filter(str.isprintable, text))


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The columns' widths; where they do not fit, the widest gives way."""
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    room -= GAP * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _folded(console: "Console", text: str, width: int) -> list[str]:
    """The text in lines of that width, broken between words where there are any."""
    if _cells(text) <= width:
        return [text]
    words = text.split(" ")
    if max(map(_cells, words)) <= width:
        return _filled(words, width)
    from rich.text import Text

    return [line.plain for line in Text(text).wrap(console, width, overflow="fold")]


def _filled(words: Sequence[str], width: int) -> list[str]:
    """As many words to a line as it has room for; none is wider than a line."""
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if _cells(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _aligned(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - _cells(text))
    return blanks + text if right else text + blanks
