"""Progress of a confirmation, for whoever listens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.study.progress import Listener, Progress
from autopeft.study.records import ObjectiveFrame, TrialRecord
from autopeft.study.store import Store
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.run_ledger import RunLedger
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.watch import Watch


@dataclass
class RunCounter:
    """How many of the runs that were asked for have ended."""

    store: Store
    name: str
    numbers: Sequence[int]
    replicates: Sequence[int]

    def __post_init__(self) -> None:
        self.before = self.done

    @property
    def total(self) -> int:
        """All that were asked for."""
        return len(self.numbers) * len(self.replicates)

    @property
    def done(self) -> int:
        """Those that have ended, well or not."""
        return sum(
            run.state.final and run.trial in self.numbers and run.replicate in self.replicates
            for run in self.store.confirmations(self.name)
        )

    def progress(self, phase: str, total_steps: int, step: int = 0, **more: Any) -> Progress:
        """The state as listeners are told it."""
        return Progress(
            self.name,
            phase,
            self.done,
            self.total,
            step=step,
            total_steps=total_steps,
            **more,
        )


class RunReporter(Reporter):
    """Progress of a confirmation; see `Reporter`."""

    def __init__(
        self,
        ledger: RunLedger,
        settings: TunerSettings,
        quality: ObjectiveFrame,
        watch: Watch,
        listener: Listener,
        counter: RunCounter,
    ) -> None:
        super().__init__(ledger, settings, quality, watch, listener)
        self._counter = counter

    def ended(self, trial: TrialRecord) -> None:
        """One line about a run that ended."""
        head = f"trial {trial.number} with seed {trial.replicate}"
        if trial.cause:
            self.event(f"{head} failed: {trial.cause}, {trial.message}")
            return
        value = trial.objectives.get(self._quality.name)
        self.event(f"{head}: {self._quality.name} {'-' if value is None else f'{value:.4f}'}")

    def report(self, phase: str, pack: Sequence[int] = (), step: int = 0) -> None:
        """The state after a change of phase."""
        named = ", ".join(str(number) for number in pack)
        what = f"{phase} trials {named}" if named else phase
        counter, steps = self._counter, self._settings.total_steps
        running = len(pack) * step / steps
        worked = counter.done - counter.before + running
        left = counter.total - counter.before - worked
        eta = self._watch.working_s / worked * left if worked > 0 else None
        self._listener.on_progress(counter.progress(what, steps, step, eta_seconds=eta))
