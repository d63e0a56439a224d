"""Drawings and wordings, one by one."""

import io
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from autopeft.cli import wording
from autopeft.cli.list_table import ListTable
from autopeft.cli.placement_map import placement_lines
from autopeft.cli.plots import print_curve_plot
from autopeft.cli.tables import plain_table, print_table
from autopeft.study.placement import PlacementMap
from autopeft.study.records import Measurement


def test_the_placement_map_shows_sizes() -> None:
    placement = PlacementMap(("lora query", "prefix"), 3, {("lora query", 1): 8, ("prefix", 2): 1})
    assert list(placement_lines(placement, width=80, ascii_only=False)) == [
        "layer        0  1  2",
        "lora query   · █8  ·",
        "prefix       ·  · ▅1",
    ]
    assert list(placement_lines(placement, width=80, ascii_only=True)) == [
        "layer        0  1  2",
        "lora query   .  8  .",
        "prefix       .  .  1",
    ]


def test_densities_are_drawn_by_themselves() -> None:
    sizes = {("lora up", 0): 8, ("sparse up", 1): 0.002, ("sparse up", 0): 0.001}
    placement = PlacementMap(("lora up", "sparse up"), 2, sizes)
    assert list(placement_lines(placement, width=80, ascii_only=False)) == [
        "layer           0      1",
        "lora up        █8      ·",
        "sparse up  ▇0.001 █0.002",
    ]


def test_many_layers_are_wrapped() -> None:
    placement = PlacementMap(("prefix",), 30, {("prefix", 29): 16})
    lines = list(placement_lines(placement, width=40, ascii_only=True))
    assert all(len(line) <= 40 for line in lines)
    assert len([line for line in lines if line.startswith("layer")]) > 1
    assert lines[-1].endswith(" 16")


def test_nothing_placed_is_said() -> None:
    [line] = placement_lines(PlacementMap((), 3, {}), width=80, ascii_only=False)
    assert "head alone" in line


@given(st.sets(st.integers(0, 60)))
def test_ranges_lose_nothing(numbers: set[int]) -> None:
    text = wording.ranges(sorted(numbers))
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    assert found == numbers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"), (0, "0 s"), (59.6, "1 min"), (125, "2 min 5 s"), (7200, "2 h"),
        (7260, "2 h 1 min"), (90061, "1 d 1 h"), (3605, "1 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(294912, "295k"), (1e6, "1M"), (12, "12"), (0.5, "0.5"), (9e14, "900T"), (3e30, "3e+30")],
)
def test_compact_numbers(value: float, text: str) -> None:
    assert wording.compact(value) == text


def test_flattened_lists_of_groups_get_an_index() -> None:
    plain = {"lora": [{"rank": 1}, {"rank": 2}], "prefix": [{"length": 3}], "a": {"b": [1]}}
    assert wording.flattened(plain) == {
        "lora.0.rank": 1, "lora.1.rank": 2, "prefix.length": 3, "a.b": [1],
    }  # fmt: skip


def _curve(*values: float | None) -> list[Measurement]:
    return [Measurement(index, "loss", "validation", v) for index, v in enumerate(values)]


@pytest.mark.parametrize(
    "values", [(1.0, 1.0), (0.0, 0.0), (1e-9, 2e-9), (-1.0, 1e6), (3.0, None, 2.0)]
)
def test_curves_of_any_range_are_drawn(values: tuple[float | None, ...]) -> None:
    target = Console(file=io.StringIO(), width=60)
    assert print_curve_plot(target, _curve(*values), "loss")
    text = target.file.getvalue()  # type: ignore[attr-defined]
    assert "*" in text
    assert max(map(len, text.splitlines())) <= 60


def test_one_point_is_no_curve() -> None:
    assert not print_curve_plot(Console(file=io.StringIO()), _curve(1.0, None), "loss")


def test_a_stream_without_unicode_gets_ascii(stored: Path) -> None:
    from autopeft import api
    from autopeft.cli import outcome, streams

    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    target = Console(file=stream, width=100, markup=False)
    assert streams.ascii_only(target)
    outcome.print_front(api.load_study(), target)
    assert b"o front" in raw.getvalue()


# -- tables of many rows --------------------------------------------------------------------------

HEADS = ("trial", "state", "accuracy", "configuration")
ROWS = [
    ("0*", "completed", "0.8123", "lora rank 8 query,value @ 4-5; prefix length 4 @ 2; lr 0.001"),
    ("1", "failed (diverged)", "-", "head only; lr 0.01"),
    ("117", "stopped", "0.71", "parallel_adapter size 64 @ 0-11; sparsity spt; lr 0.000302"),
    ("118", "", "0.5", "模型 size 8 @ 1; " + "serial_adapter," * 9),
]


def _printed(table: Any, width: int, *, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_table(Console(file=file, width=width, force_terminal=True, color_system=None), table)
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [200, 120, 80])
def test_many_rows_look_as_rich_draws_them(width: int) -> None:
    ours, theirs = ListTable(*HEADS, right=HEADS[::2]), plain_table(*HEADS, right=HEADS[::2])
    for row in ROWS:
        ours.add_row(*row)
        theirs.add_row(*row)
    lines = [
        [line.rstrip() for line in _printed(each, width).splitlines()] for each in (ours, theirs)
    ]
    assert lines[0] == lines[1]
    assert "configuration" in lines[0][1]


def test_a_narrow_terminal_loses_nothing_of_many_rows() -> None:
    table = ListTable(*HEADS)
    for row in ROWS:
        table.add_row(*row)
    text = _printed(table, 40)
    assert all(cell_len(line) <= 40 for line in text.splitlines())
    assert sorted("".join(text.split()).replace("─", "")) == sorted(
        "".join("".join([*HEADS, *(cell for row in ROWS for cell in row)]).split())
    )


def test_what_a_cell_holds_moves_no_cursor_and_an_old_terminal_has_its_characters() -> None:
    table = ListTable("name", "state")
    table.add_row("a\x1b[2Jb\r\nc", "running")
    text = _printed(table, 60, encoding="ascii")
    assert "a[2Jb c   running" in text
    assert set(text) <= set(string.printable)
