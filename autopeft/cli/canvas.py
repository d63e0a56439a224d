"""A plot in characters: points in a frame, with labelled ticks on the left and below.

Drawn here and not by a package: the plots of a front and of a learning curve are all that the
command line needs, and what draws more takes longer to import than a study to read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.text import Text

_TO_ASCII = str.maketrans("┌┐└┘─│┤┬", "++++-||+")

Cell: TypeAlias = tuple[int, int]
"""Row from above, column from the left."""

Ink: TypeAlias = tuple[str, str]
"""A character, and its style as Rich names it."""

_BLANK: Ink = (" ", "")


@dataclass(frozen=True)
class Series:
    """Points that share a marker.

    Attributes:
        name: What they are.
        marker: One ASCII character.
        points: (x, y) pairs as drawn.
        style: The marker's, as Rich names it.
        joined: Whether a line connects them.
    """

    name: str
    marker: str
    points: tuple[tuple[float, float], ...]
    style: str
    joined: bool = False


@dataclass(frozen=True)
class Axis:
    """A direction of the plot.

    Attributes:
        low: Where it begins.
        high: Where it ends, above `low`.
        ticks: Labels by where they stand, all of them between.
    """

    low: float
    high: float
    ticks: Mapping[float, str]

    def place(self, value: float, size: int) -> int:
        """The cell of `size` that holds a value."""
        return round((value - self.low) / (self.high - self.low) * (size - 1))

    def labels(self, size: int) -> dict[int, str]:
        """The labels by the cells where they stand."""
        return {self.place(value, size): label for value, label in self.ticks.items()}


def drawn(
    series: Sequence[Series], x: Axis, y: Axis, *, width: int, rows: int, ascii_only: bool = False
) -> "Text":
    """The plot, its frame and labels included; of points on one cell the last series' is seen.

    Args:
        series: What to draw.
        x: To the right.
        y: Upwards.
        width: Columns of the whole.
        rows: Rows of the whole.
        ascii_only: Whether the frame is of ASCII characters.
    """
    from rich.text import Text

    labels = y.labels(rows - 3)
    margin = max(map(len, labels.values()), default=0)
    columns = max(1, width - margin - 2)
    below = x.labels(columns)
    inked = dict(_inked(series, x, y, (rows - 3, columns)))
    plain = _TO_ASCII if ascii_only else {}
    text = Text(no_wrap=True)
    text.append(f"{' ' * margin}┌{'─' * columns}┐\n".translate(plain))
    for row in range(rows - 3):
        label = labels.get(rows - 4 - row)
        text.append(f"{label or '':>{margin}}{'│' if label is None else '┤'}".translate(plain))
        for style, inks in groupby(
            (inked.get((row, column), _BLANK) for column in range(columns)), lambda ink: ink[1]
        ):
            text.append("".join(character for character, _ in inks), style)
        text.append("│\n".translate(plain))
    edge = "".join("┬" if column in below else "─" for column in range(columns))
    text.append(f"{' ' * margin}└{edge}┘\n".translate(plain))
    text.append(_centred(below, margin + 1, width))
    return text


def _inked(
    series: Sequence[Series], x: Axis, y: Axis, size: tuple[int, int]
) -> Iterator[tuple[Cell, Ink]]:
    n_rows, n_columns = size
    for each in series:
        cells = [
            (n_rows - 1 - y.place(value, n_rows), x.place(at, n_columns))
            for at, value in each.points
        ]
        for cell in _line(cells) if each.joined else cells:
            yield cell, (each.marker, each.style)


def _line(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The cells, and those between one and the next."""
    for (row, column), (next_row, next_column) in pairwise(cells):
        steps = max(abs(next_row - row), abs(next_column - column), 1)
        for step in range(steps + 1):
            share = step / steps
            yield (
                round(row + share * (next_row - row)),
                round(column + share * (next_column - column)),
            )


def _centred(labels: Mapping[int, str], margin: int, width: int) -> str:
    """Labels below their ticks, as far as there is room; one that would touch another is left."""
    line = ""
    for column, label in sorted(labels.items()):
        start = min(margin + column - (len(label) - 1) // 2, width - len(label))
        if start > len(line) or not line:
            line = f"{line:<{start}}{label}"
    return line
