"""The displays: how often, how much, and where to."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from autopeft.cli import progress as displays
from autopeft.cli.progress import LiveDisplay, PlainLines, Quiet, display, progress_line
from autopeft.study.progress import Progress

NOW = Progress(
    "demo", "training", 4, 20, (4, 5, 6), 30, 90, "accuracy", 0.8125, 0.4321, 3, eta_seconds=125.0
)


def test_a_line_says_everything() -> None:
    assert progress_line(NOW, "trials") == (
        "4/20 trials, training trials 4-6, step 30/90, hypervolume 0.4321, best accuracy 0.8125, "
        "3 on the front, 2 min 5 s left"
    )


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert progress_line(Progress("demo", "loading", 0, 0), "trials") == "loading model and data"


def test_training_alone_speaks_of_no_trials() -> None:
    now = Progress("best.yaml", "training", 0, 1, (0,), 30, 90, "accuracy")
    assert progress_line(now, "") == "training, step 30/90"


def test_progress_lines_come_every_ten_seconds_and_events_at_once() -> None:
    seconds, lines = [0.0], []
    plain = PlainLines(write=lines.append, clock=lambda: seconds[0])
    for now in (0.0, 1.0, 9.9, 10.0, 12.0, 20.5):
        seconds[0] = now
        plain.on_progress(replace(NOW, step=int(now)))
        plain.on_event(f"at {now}")
    steps = [line.split("step ")[1].split("/")[0] for line in lines if "step" in line]
    assert steps == ["0", "10", "20"]
    assert len([line for line in lines if line.startswith("at ")]) == 6


def _screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    target = Console(file=screen, force_terminal=True, width=100, markup=False, highlight=False)
    monkeypatch.setattr(displays, "console", lambda **_: target)
    return screen


def test_the_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _screen(monkeypatch)
    with LiveDisplay() as shown:
        shown.on_progress(NOW)
        shown.on_event("trial 3 [completed]")
        shown.notice("saving, press again to stop now")
    text = screen.getvalue()
    for part in ("4/20 trials", "training trials 4-6", "step 30/90", "hypervolume 0.4321"):
        assert part in text
    assert "2 min 5 s left" in text
    assert "trial 3 [completed]" in text
    assert "press again" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


@pytest.mark.parametrize("told", [None, Progress("demo", "loading", 0, 0)])
def test_the_live_display_says_that_it_loads(
    monkeypatch: pytest.MonkeyPatch, told: Progress | None
) -> None:
    screen = _screen(monkeypatch)
    with LiveDisplay() as shown:
        if told is not None:
            shown.on_progress(told)
        shown.on_event("tiny: 0.1 M parameters")
    lines = screen.getvalue()
    assert "loading model and data" in lines
    assert "tiny: 0.1 M parameters" in lines
    assert "0/0" not in lines


def test_the_live_display_ends_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _screen(monkeypatch)
    shown = LiveDisplay()
    shown.on_progress(NOW)
    with shown:
        pass
    assert "loading" not in screen.getvalue()


def test_lines_tell_what_happens_while_it_loads() -> None:
    lines: list[str] = []
    plain = PlainLines(write=lines.append, clock=lambda: 0.0)
    plain.on_progress(Progress("demo", "loading", 0, 0))
    plain.on_event("tiny: 0.1 M parameters")
    assert lines == ["loading model and data", "tiny: 0.1 M parameters"]


def test_what_is_no_terminal_gets_lines() -> None:
    assert isinstance(display(quiet=False), PlainLines)
    assert isinstance(display(quiet=True), Quiet)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_forced_colour_makes_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        displays, "console", lambda **_: Console(file=io.StringIO(), force_terminal=True)
    )
    assert isinstance(display(quiet=False), PlainLines)


def test_a_terminal_gets_the_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setattr(displays, "console", lambda **_: Console(file=Terminal()))
    assert isinstance(display(quiet=False), LiveDisplay)
    assert isinstance(display(quiet=False, plain=True), PlainLines)
