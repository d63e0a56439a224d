"""The plot's characters: where points, lines, ticks and labels stand."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from autopeft.cli.plot_grid import Axis, PlotGrid, Point

X = Axis(0.0, 10.0, [0.0, 5.0, 10.0], ["0", "5", "10"])
Y = Axis(0.0, 4.0, [0.0, 2.0], ["min", "2"])


def _text(grid: PlotGrid) -> list[str]:
    return ["".join(character for character, _ in line) for line in grid.lines()]


def test_a_plot_is_drawn_to_the_character() -> None:
    grid = PlotGrid(16, 8, X, Y)
    grid.draw([(0.0, 0.0), (4.0, 4.0)], ("*", 10), joined=True)
    grid.draw([(10.0, 2.0), (4.0, 4.0)], ("o", 8))
    assert _text(grid) == [
        "   ┌───────────┐",
        "   │    o      │",
        "   │   *       │",
        "  2┤  *       o│",
        "   │ *         │",
        "min┤*          │",
        "   └┬────┬────┬┘",
        "    0    5    10",
    ]
    [(_, colour)] = {mark for line in grid.lines() for mark in line if mark[0] == "o"}
    assert colour == 8, "what is drawn later covers what was there"


def test_labels_that_would_cover_another_are_left_out() -> None:
    ticks = [0.0, 0.1, 1.0, 9.0, 10.0]
    crowded = Axis(0.0, 10.0, ticks, ["zero", "hidden", "one", "nine", "ten"])
    grid = PlotGrid(20, 5, crowded, Y)
    *_, rule, labels = _text(grid)
    assert labels.split() == ["zero", "nine"]
    assert rule.count("┬") == 4, "every tick is drawn, and two in one column are one"


@given(
    st.lists(
        st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=2, max_size=5, unique=True
    )
)
def test_lines_have_no_gaps_and_nothing_leaves_the_frame(points: list[Point]) -> None:
    grid = PlotGrid(30, 12, Axis(-1e6, 1e6, [0.0], ["0"]), Axis(-1e6, 1e6, [0.0], ["0"]))
    grid.draw(points, ("*", None), joined=True)
    lines = _text(grid)
    assert {len(line) for line in lines[:-1]} == {30}
    assert len(lines) == 12
    rows = [row for row, line in enumerate(lines) if "*" in line]
    columns = sorted({c for line in lines for c, character in enumerate(line) if character == "*"})
    assert rows == list(range(rows[0], rows[-1] + 1))
    assert all(b - a == 1 for a, b in pairwise(columns))
