"""Progress of a running search, for whoever listens; packs on several devices share it."""

from collections.abc import Sequence
from threading import RLock

from autopeft.study.progress import Listener, Progress
from autopeft.study.records import ObjectiveFrame, TrialRecord
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.watch import Watch

EVERY_STEPS = 5
"""Optimizer steps between two reports: each reads the database."""


class Reporter:
    """Turns the ledger's state into `Progress` and lines.

    Args:
        ledger: The study.
        settings: Its budget.
        quality: The first objective.
        watch: The sitting's time.
        listener: Whom to tell.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: TunerSettings,
        quality: ObjectiveFrame,
        watch: Watch,
        listener: Listener,
    ) -> None:
        self._ledger, self._settings, self._quality = ledger, settings, quality
        self._watch, self._listener = watch, listener
        self._done_before = self._done()
        self._lock, self._shown = RLock(), 0

    def event(self, text: str) -> None:
        """Something worth a line."""
        with self._lock:
            self._listener.on_event(text)

    def ended(self, trial: TrialRecord) -> None:
        """One line about a trial that ended."""
        name = f"baseline {trial.baseline}" if trial.baseline else trial.origin.value
        head = f"trial {trial.number} ({name}) {trial.state.value}"
        if trial.cause:
            self.event(f"{head}: {trial.cause}, {trial.message}")
            return
        value = trial.objectives.get(self._quality.name)
        shown = "-" if value is None else f"{value:.4f}"
        where = "" if trial.rung == 1.0 else f" at rung {trial.rung}"
        params = f"{trial.trainable_params:,} parameters"
        self.event(f"{head}{where}: {self._quality.name} {shown}, {params}")

    def step(self, pack: Sequence[int], step: int) -> None:
        """A training step; told now and then."""
        mark = step // EVERY_STEPS
        with self._lock:
            if mark != self._shown:
                self._shown = mark
                self.report("training", pack, step)

    def report(self, phase: str, pack: Sequence[int] = (), step: int = 0) -> None:
        """The state after a change of phase."""
        snapshot = self._ledger.last_snapshot()
        done = self._done()
        total = self._settings.trials + len(self._settings.baselines)
        progress = Progress(
            study=self._ledger.name,
            phase=phase,
            done=done,
            total=total,
            pack=tuple(pack),
            step=step,
            total_steps=self._settings.total_steps,
            metric=self._quality.name,
            best=self._best(snapshot.front if snapshot else ()),
            hypervolume=snapshot.hypervolume if snapshot else 0.0,
            front_size=len(snapshot.front) if snapshot else 0,
            eta_seconds=self._eta(done, total, step, len(pack)),
        )
        with self._lock:
            self._listener.on_progress(progress)

    def _done(self) -> int:
        return sum(count for state, count in self._ledger.counts().items() if state.final)

    def _best(self, front: Sequence[int]) -> float | None:
        name = self._quality.name
        values = [self._ledger.trial(number).objectives.get(name) for number in front]
        present = [value for value in values if value is not None]
        if not present:
            return None
        return max(present) if self._quality.goal == "max" else min(present)

    def _eta(self, done: int, total: int, step: int, lanes: int) -> float | None:
        """Seconds left at this sitting's pace, counting the running pack's share."""
        progress = done - self._done_before + lanes * step / self._settings.total_steps
        if progress <= 0:
            return None
        left = max(0.0, total - self._done_before - progress)
        return self._watch.working_s / progress * left
