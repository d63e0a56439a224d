"""A plot on a grid of characters: a frame with round numbers on two axes, points, and lines.

It is drawn here, as what draws plots for terminals in general takes a third of a second to import,
longer than all else that a reading command does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]
"""x and y, in the units of their axes."""

Cell = tuple[int, int]
"""Column and row, from the lower left."""

Mark = tuple[str, int | None]
"""What stands in a cell: a character, and its colour's code in the terminal's palette."""

BLANK: Mark = (" ", None)


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: Its lower end.
        high: Its upper end, above `low`.
        ticks: Values that are marked.
        labels: What is written there.
    """

    low: float
    high: float
    ticks: Sequence[float]
    labels: Sequence[str]

    def cell(self, value: float, n: int) -> int:
        """The cell of `n` that a value lies in; the outermost for one beyond the ends."""
        share = (value - self.low) / (self.high - self.low)
        return min(max(round(share * (n - 1)), 0), n - 1)

    def marked(self, n: int) -> dict[int, str]:
        """Labels by cell; of several in one cell the first."""
        found: dict[int, str] = {}
        for tick, label in zip(self.ticks, self.labels, strict=True):
            found.setdefault(self.cell(tick, n), label)
        return found


class PlotGrid:
    """A plot of so many characters, labels included; what is drawn later covers what was before.

    Args:
        width: Columns.
        height: Lines.
        x: The horizontal axis.
        y: The vertical one.
    """

    def __init__(self, width: int, height: int, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y
        self._margin = max(map(len, y.labels), default=0)
        self._columns = max(2, width - self._margin - 2)
        self._rows = max(2, height - 3)
        self._marks: dict[Cell, Mark] = {}

    def draw(self, points: Iterable[Point], mark: Mark, *, joined: bool = False) -> None:
        """Points, with lines between them where they are joined."""
        cells = [self._cell(point) for point in points]
        for cell in [*cells, *(c for pair in pairwise(cells) if joined for c in _line(*pair))]:
            self._marks[cell] = mark

    def _cell(self, point: Point) -> Cell:
        return self._x.cell(point[0], self._columns), self._y.cell(point[1], self._rows)

    def lines(self) -> Iterator[list[Mark]]:
        """The plot from top to bottom, a mark per column."""
        marked = self._y.marked(self._rows)
        yield _plain(f"{'':>{self._margin}}┌{'─' * self._columns}┐")
        for row in reversed(range(self._rows)):
            edge = "┤" if row in marked else "│"
            cells = [self._marks.get((column, row), BLANK) for column in range(self._columns)]
            label = f"{marked.get(row, ''):>{self._margin}}"
            yield [*_plain(f"{label}{edge}"), *cells, *_plain("│")]
        ticks = self._x.marked(self._columns)
        rule = "".join("┬" if column in ticks else "─" for column in range(self._columns))
        yield _plain(f"{'':>{self._margin}}└{rule}┘")
        yield _plain(self._below(ticks))

    def _below(self, ticks: dict[int, str]) -> str:
        """The labels of the horizontal axis, each under its tick; none that another one covers."""
        text = ""
        for column, label in sorted(ticks.items()):
            start = self._margin + 1 + column - (len(label) - 1) // 2
            start = min(start, self._margin + self._columns + 2 - len(label))
            if start > len(text) or not text:
                text = f"{text:<{start}}{label}"
        return text


def _plain(text: str) -> list[Mark]:
    return [(character, None) for character in text]


def _line(start: Cell, end: Cell) -> Iterator[Cell]:
    """The cells of a straight line, without its ends."""
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0))
    for step in range(1, steps):
        share = step / steps
        yield round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0))
