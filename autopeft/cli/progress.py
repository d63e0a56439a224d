"""How a running search shows itself: a live display on a terminal, plain lines elsewhere.

Both are listeners. Their calls come from the training loop, so they only note what they are told;
the live display is redrawn by rich's own thread. With `--json`, `TrialLines` prints a JSON line
for each trial that ends and each snapshot of the front.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from autopeft.cli.streams import ascii_only, console, interactive, print_json, say
from autopeft.cli.wording import duration, number, ranges
from autopeft.study.progress import BEFORE_TRIALS, Listener, Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopeft.api.study import Study

LINE_EVERY_S = 10.0
"""How often a progress line is printed where there is no live display."""

LOADING = "loading model and data"
"""What is shown before the first trial; it may take tens of seconds."""

WORKING = frozenset({"suggesting", "probing", "training", "evaluating"})
"""Phases in which a search does something: one that shows none had nothing left to do."""


class Display(Listener, AbstractContextManager["Display"], Protocol):
    """A listener that is shown between enter and exit."""

    def notice(self, text: str) -> None:
        """Show one line; may be called within a signal handler."""


class PlainLines:
    """Events as lines on stderr, and a progress line at most every `LINE_EVERY_S` seconds.

    Args:
        unit: What is counted, or "" to tell the steps alone.
        write: Prints one line.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        unit: str = "trials",
        *,
        write: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._unit, self._write, self._clock = unit, write, clock
        self._last = -LINE_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def on_progress(self, progress: Progress) -> None:
        """A line, where the last one is long enough ago."""
        now = self._clock()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            self._write(progress_line(progress, self._unit))

    def on_event(self, text: str) -> None:
        """The event, at once."""
        self._write(text)

    def notice(self, text: str) -> None:
        """The line, past Python's buffers: a signal may have come in the middle of a write."""
        os.write(2, f"{text}\n".encode())


class Quiet:
    """Shows nothing but the answer to a signal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def on_progress(self, progress: Progress) -> None:
        """Nothing."""

    def on_event(self, text: str) -> None:
        """Nothing."""

    def notice(self, text: str) -> None:
        """The line, past Python's buffers."""
        os.write(2, f"{text}\n".encode())


class LiveDisplay:
    """A block at the foot of the terminal that follows the search; events scroll above it.

    Args:
        unit: What the overall bar counts, or "" to show the bar of the steps alone.
    """

    def __init__(self, unit: str = "trials") -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        target = console(stderr=True)
        self._unit = unit
        self._loading = Spinner("line" if ascii_only(target) else "dots", LOADING)
        self._progress: Progress | None = None
        self._notice = ""
        self._live = Live(
            console=target,
            get_renderable=self._drawn,
            refresh_per_second=4,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def on_progress(self, progress: Progress) -> None:
        """Remembered; drawn at the next refresh."""
        self._progress = progress

    def on_event(self, text: str) -> None:
        """The event, above the display."""
        self._live.console.print(text, soft_wrap=True)

    def notice(self, text: str) -> None:
        """Remembered; drawn at the next refresh."""
        self._notice = text

    def _drawn(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        if self._progress is None or self._progress.phase == "loading":
            parts.append(self._loading)
        else:
            parts += [self._bars(self._progress), Text(", ".join(facts(self._progress)))]
        if self._notice:
            parts.append(Text(self._notice, style="bold yellow"))
        return Group(*parts)

    def _bars(self, progress: Progress) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 1))
        if self._unit:
            done = f"{progress.done}/{progress.total} {self._unit}"
            bar = ProgressBar(total=max(progress.total, 1), completed=progress.done, width=30)
            grid.add_row(progress.study, bar, done)
        step = f"step {progress.step}/{progress.total_steps}" if progress.total_steps else ""
        total = max(progress.total_steps, 1)
        grid.add_row(
            activity(progress, self._unit),
            ProgressBar(total=total, completed=progress.step, width=30),
            step,
        )
        return grid


class TrialLines:
    """A JSON line on stdout for every event, every trial that ended and every snapshot.

    Args:
        load: Gives the study by its name, once it exists.
    """

    def __init__(self, load: Callable[[str], "Study"]) -> None:
        self._load = load
        self._done = -1
        self._trials: set[int] = set()
        self._snapshots = 0

    def on_progress(self, progress: Progress) -> None:
        """Lines for what is new, whenever the number of finished trials has changed."""
        if progress.phase not in BEFORE_TRIALS and progress.done != self._done:
            self._done = progress.done
            print_json({"type": "progress", **asdict(progress)}, indent=None)
            self.print_new(self._load(progress.study))

    def on_event(self, text: str) -> None:
        """The event as a line."""
        print_json({"type": "event", "text": text}, indent=None)

    def print_new(self, study: "Study") -> None:
        """Lines for the trials and snapshots that were not printed yet."""
        for trial in study.trials():
            if trial.state.final and trial.number not in self._trials:
                self._trials.add(trial.number)
                print_json({"type": "trial", **trial.to_dict()}, indent=None)
        for snapshot in study.snapshots()[self._snapshots :]:
            self._snapshots += 1
            plain: dict[str, Any] = {
                "index": snapshot.index,
                "trials": snapshot.trials,
                "front": list(snapshot.front),
                "hypervolume": snapshot.hypervolume,
            }
            print_json({"type": "snapshot", **plain}, indent=None)


class Watch:
    """Passes everything on, and remembers whether there was work.

    Attributes:
        worked: Whether the search proposed or trained anything.
        study: The study's name, or "" before it was known.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)
        self.worked = False
        self.study = ""

    def on_progress(self, progress: Progress) -> None:
        """To all."""
        self.study = progress.study
        self.worked = self.worked or progress.phase in WORKING
        for listener in self._listeners:
            listener.on_progress(progress)

    def on_event(self, text: str) -> None:
        """To all."""
        for listener in self._listeners:
            listener.on_event(text)


def display(*, quiet: bool, plain: bool = False, unit: str = "trials") -> Display:
    """The display that fits: none, lines, or live where stderr is a terminal."""
    if quiet:
        return Quiet()
    if plain or not interactive(console(stderr=True)):
        return PlainLines(unit)
    return LiveDisplay(unit)


def activity(progress: Progress, unit: str) -> str:
    """What is going on: `training trials 4-7`."""
    if progress.phase == "loading":
        return LOADING
    if not progress.pack or not unit:
        return progress.phase
    noun = unit.removesuffix("s") if len(progress.pack) == 1 else unit
    return f"{progress.phase} {noun} {ranges(sorted(progress.pack))}"


def facts(progress: Progress) -> list[str]:
    """What has been reached so far; nothing that is not there yet."""
    known = []
    if progress.front_size:
        known.append(f"hypervolume {progress.hypervolume:.4f}")
    if progress.best is not None:
        known.append(f"best {progress.metric} {number(progress.best)}")
    if progress.front_size:
        known.append(f"{progress.front_size} on the front")
    if progress.eta_seconds is not None:
        known.append(f"{duration(progress.eta_seconds)} left")
    return known


def progress_line(progress: Progress, unit: str) -> str:
    """The whole state in one line."""
    done = [f"{progress.done}/{progress.total} {unit}"] if unit and progress.total else []
    step = [f"step {progress.step}/{progress.total_steps}"] if progress.total_steps else []
    return ", ".join([*done, activity(progress, unit), *step, *facts(progress)])
