"""How a running search is watched and asked to stop: plain values, no display."""

import time
from dataclasses import dataclass
from typing import Protocol

MEASURING = "measuring importance"
"""The phase in which an importance map is measured."""

BEFORE_TRIALS = frozenset({"loading", MEASURING})
"""Phases in which a study may not be stored yet."""


@dataclass(frozen=True)
class Progress:
    """Where a running search is.

    Attributes:
        study: Its name.
        phase: `loading`, `measuring importance`, `suggesting`, `probing`, `training`,
            `evaluating`, `finished` or `interrupted`.
        done: Trials in a final state, baselines included.
        total: Trials that the budget foresees, baselines included.
        pack: Numbers of the trials in training.
        step: Optimizer steps taken by the pack.
        total_steps: Steps of the full budget.
        metric: The quality metric's name.
        best: Best value of it so far at the full budget, or None.
        hypervolume: Of the current front, in [0, 1].
        front_size: Trials on it.
        eta_seconds: Estimated seconds left, or None.
    """

    study: str
    phase: str
    done: int
    total: int
    pack: tuple[int, ...] = ()
    step: int = 0
    total_steps: int = 0
    metric: str = ""
    best: float | None = None
    hypervolume: float = 0.0
    front_size: int = 0
    eta_seconds: float | None = None


class Listener(Protocol):
    """Watches a search. Calls come from the training loop: they must return at once."""

    def on_progress(self, progress: Progress) -> None:
        """The state after a step or a change of phase."""

    def on_event(self, text: str) -> None:
        """Something worth a line: a trial ended, a pack was halved, a note on the data."""


class Silent:
    """A listener that does nothing."""

    def on_progress(self, progress: Progress) -> None:
        """Nothing."""

    def on_event(self, text: str) -> None:
        """Nothing."""


@dataclass
class Stopper:
    """A request to stop that signal handlers set and the training loop reads.

    Attributes:
        reason: Why to stop, or "" while nobody asked.
        until: The moment (`time.monotonic`) by which it must have stopped, or None.
        cuts: Whether a signal may end at once what runs, by a KeyboardInterrupt: nothing of it
            needs to be saved.
    """

    reason: str = ""
    until: float | None = None
    cuts: bool = False

    def request(self, reason: str, *, within_s: float | None = None) -> None:
        """Ask for a stop after the running step, or within some seconds if that takes longer."""
        self.reason = reason
        if within_s is not None:
            self.until = time.monotonic() + within_s

    @property
    def overdue(self) -> bool:
        """Whether what was to stop takes too long."""
        return self.until is not None and time.monotonic() > self.until
