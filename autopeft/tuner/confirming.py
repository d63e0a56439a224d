"""Chosen trials trained again: at the full budget, with other seeds, in packs of one seed.

The mechanism is the search's: packs of trials that share batches, halved where memory is short,
lane states saved on the way, a lease on the study. What differs is where results go (runs of a
confirmation, not trials), that a pack's seed is a replicate of the study's, and that the last
lane states are kept: the test split may be opened later, without training anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft.configuration import Configuration
from autopeft.errors import TrialError
from autopeft.execution.base import Result, Run, Runner
from autopeft.execution.states import CohortStates
from autopeft.searchers.base import Problem
from autopeft.study.confirmation import ConfirmationRun, Opening
from autopeft.study.progress import Listener, Progress, Stopper
from autopeft.study.records import (
    Measurement,
    ObjectiveFrame,
    TrialRecord,
    TrialState,
    TrialUpdate,
)
from autopeft.study.store import Store
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.packing import grouped
from autopeft.tuner.packs import PackTraining
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.watch import Watch

FULL = 1.0

SPENT = {"train_seconds", "optimizer_steps", "wall_seconds"}
"""What a confirmation spends is counted beside the search's budget, under `confirm_...`."""


class ConfirmationTraining:
    """Trains chosen trials with several seeds, as the study's only coordinator.

    Args:
        store: Keeps the study.
        name: Its name.
        token: Of its lease, which the caller holds.
        problem: Its objectives and backbone.
        runner: Trains.
        settings: What a pack needs to know, see `confirmation_settings`.
        listener: Watches.
        stopper: Asks for an early end.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        token: int,
        *,
        problem: Problem,
        runner: Runner,
        settings: TunerSettings,
        listener: Listener,
        stopper: Stopper,
    ) -> None:
        self._store, self._name, self._token = store, name, token
        self._problem, self._runner, self._settings = problem, runner, settings
        self._listener = listener
        self._ledger = RunLedger(store, name, token, {}, 0)
        self._watch = Watch(self._ledger, settings, stopper)

    def run(self, trials: Sequence[TrialRecord], replicates: Sequence[int]) -> None:
        """Train every trial with every replicate; what has a result stays.

        Raises:
            InterruptedStudyError: Stopped before the end, with everything saved.
            AutopeftError: Several lone runs in a row failed with an error of the program.
        """
        numbers = [trial.number for trial in trials]
        self._store.requeue_confirmations(self._name, self._token)
        self._store.add_confirmations(self._name, self._token, numbers, replicates)
        counter = _Counter(self._store, self._name, numbers, replicates)
        try:
            for replicate in replicates:
                self._replicate(trials, replicate, counter)
        finally:
            self._watch.note()
        self._listener.on_progress(counter.progress("finished", self._settings.total_steps))

    def _replicate(
        self, trials: Sequence[TrialRecord], replicate: int, counter: "_Counter"
    ) -> None:
        ledger = RunLedger(
            self._store, self._name, self._token, {t.number: t for t in trials}, replicate
        )
        waiting = [trial for trial in ledger.trials() if not trial.state.final]
        reporter = _RunReporter(
            ledger, self._settings, self._problem.frame[0], self._watch, self._listener, counter
        )
        states = CohortStates(self._settings.states, replicate)
        runner = _KeepingRunner(self._runner, replicate, states)
        packs = PackTraining(
            ledger, self._problem, runner, self._settings, self._watch, reporter
        )
        packs.expect([trial.number for trial in waiting])
        for pack in grouped(waiting, self._problem.anatomy, size=packs.size):
            for alike in _by_step(pack, states):
                if self._watch.stopping():
                    raise self._watch.interrupt()
                packs.run(alike, FULL)

    # -- the test split -----------------------------------------------------------------------

    def evaluate_test(self, trials: Sequence[TrialRecord], opening: Opening) -> None:
        """Evaluate the runs that an opening covers on the test split, those once measured not.

        Raises:
            InterruptedStudyError: Stopped before the end; the same opening goes on.
            TrialError: The device cannot evaluate a lone run.
        """
        by_number = {trial.number: trial for trial in trials}
        for replicate in opening.replicates:
            left = [
                by_number[run.trial]
                for run in self._store.confirmations(self._name)
                if run.replicate == replicate
                and run.trial in by_number
                and run.state is TrialState.COMPLETED
                and run.test is None
                and opening.covers(run.trial, replicate)
            ]
            size = min(self._settings.pack_size, self._settings.memory_limit or 1 << 16)
            for pack in grouped(left, self._problem.anatomy, size=size):
                self._test_pack(pack, replicate, opening)

    def _test_pack(self, pack: Sequence[TrialRecord], replicate: int, opening: Opening) -> None:
        if self._watch.stopping():
            raise self._watch.interrupt()
        numbers = ", ".join(str(trial.number) for trial in pack)
        total = self._settings.total_steps
        self._listener.on_progress(
            Progress(self._name, f"testing trials {numbers}, seed {replicate}", 0, 0)
        )
        states = CohortStates(self._settings.states, replicate)
        try:
            run = self._trained(pack, replicate, states, total)
            results = run.measure(opening)
        except TrialError:
            if len(pack) == 1:
                raise
            middle = len(pack) // 2
            for half in (pack[:middle], pack[middle:]):
                self._test_pack(half, replicate, opening)
            return
        values = {result.number: dict(result.values) for result in results}
        self._store.keep_test(self._name, self._token, replicate, values)

    def _trained(
        self, pack: Sequence[TrialRecord], replicate: int, states: CohortStates, total: int
    ) -> Run:
        """The pack at its end: from the kept lane states, else trained to there once more."""
        lanes = [(trial.number, trial.configuration) for trial in pack]
        saved = {trial.number: states.newest(trial.number) for trial in pack}
        resume = {n: own.path for n, own in saved.items() if own is not None and own.step == total}
        whole = len(resume) == len(lanes)
        run = self._runner.start(
            lanes,
            resume=resume if whole else {},
            waited=dict.fromkeys(saved, 0.0),
            replicate=replicate,
        )
        if not whole and not run.train(total, on_step=lambda step: not self._watch.stopping()):
            raise self._watch.interrupt()
        return run


def _by_step(pack: Sequence[TrialRecord], states: CohortStates) -> list[list[TrialRecord]]:
    """Lanes that a kill left at one step, together; the farthest first."""
    at: dict[int, list[TrialRecord]] = {}
    for trial in pack:
        saved = states.newest(trial.number)
        at.setdefault(saved.step if saved else 0, []).append(trial)
    return [at[step] for step in sorted(at, reverse=True)]


class RunLedger(Ledger):
    """The runs of one replicate, as what trains packs sees trials.

    Args:
        store: Keeps the study.
        name: The study's name.
        token: Of the lease.
        trials: Whose configurations are trained, by number.
        replicate: Of the study's seed.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        token: int,
        trials: Mapping[int, TrialRecord],
        replicate: int,
    ) -> None:
        super().__init__(store, name, token)
        self._chosen, self._replicate = dict(trials), replicate

    def trials(self) -> list[TrialRecord]:
        """The chosen trials, in the states of their runs."""
        runs = {run.trial: run for run in self._runs()}
        return [self._as_trial(runs[number]) for number in sorted(self._chosen)]

    def trial(self, number: int) -> TrialRecord:
        """One of them."""
        return next(self._as_trial(run) for run in self._runs() if run.trial == number)

    def counts(self) -> dict[TrialState, int]:
        """Runs by state."""
        states = [trial.state for trial in self.trials()]
        return {state: states.count(state) for state in TrialState}

    def start(self, numbers: Sequence[int]) -> None:
        """Mark runs running."""
        self._store.start_confirmations(self.name, self._token, self._replicate, numbers)

    def update(self, updates: Sequence[TrialUpdate]) -> None:
        """Record and end runs, all or none."""
        self._store.update_confirmations(self.name, self._token, self._replicate, updates)

    def spend(self, **spent: float) -> None:
        """Add to what confirmations have spent; the search's budget stays."""
        own = {f"confirm_{key}": amount for key, amount in spent.items() if key in SPENT}
        super().spend(**own)

    def interrupt(self) -> None:
        """End a sitting before its time; the study's own state stays."""
        self._store.requeue_confirmations(self.name, self._token)

    def _runs(self) -> list[ConfirmationRun]:
        runs = self._store.confirmations(self.name)
        return [
            run for run in runs if run.replicate == self._replicate and run.trial in self._chosen
        ]

    def _as_trial(self, run: ConfirmationRun) -> TrialRecord:
        return replace(
            self._chosen[run.trial],
            state=run.state,
            objectives=run.values,
            rung=FULL if run.ended else None,
            optimizer_steps=run.optimizer_steps,
            replicate=run.replicate,
            pack=run.replicate,
            attempts=run.attempts,
            cause=run.cause,
            message=run.message,
            profile=run.profile,
        )


class _KeepingRunner:
    """A runner of one replicate, whose packs keep their last lane states."""

    def __init__(self, runner: Runner, replicate: int, states: CohortStates) -> None:
        self._runner, self._replicate, self._states = runner, replicate, states

    def probe(self, configuration: Configuration) -> dict[str, Any]:
        """See `Runner.probe`."""
        return self._runner.probe(configuration)

    def start(
        self,
        lanes: Sequence[tuple[int, Configuration]],
        *,
        resume: Mapping[int, Path],
        waited: Mapping[int, float],
        replicate: int = 0,
    ) -> Run:
        """See `Runner.start`; always of the own replicate."""
        run = self._runner.start(lanes, resume=resume, waited=waited, replicate=self._replicate)
        return _KeepingRun(run, [number for number, _ in lanes], self._states)


class _KeepingRun:
    """A run whose lane states are saved before they are measured."""

    def __init__(self, run: Run, numbers: Sequence[int], states: CohortStates) -> None:
        self._run, self._numbers, self._states = run, numbers, states

    @property
    def step(self) -> int:
        """See `Run.step`."""
        return self._run.step

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """See `Run.train`."""
        return self._run.train(until, on_step=on_step)

    def measure(self, opening: Opening | None = None) -> list[Result]:
        """See `Run.measure`."""
        self._states.save(self._run, self._numbers)
        return self._run.measure(opening)

    def curve(self) -> dict[int, list[Measurement]]:
        """See `Run.curve`."""
        return self._run.curve()

    def save(self, folder: Path) -> None:
        """See `Run.save`."""
        self._run.save(folder)

    def profile(self, number: int) -> dict[str, Any]:
        """See `Run.profile`."""
        return self._run.profile(number)


# -- progress -------------------------------------------------------------------------------------


@dataclass
class _Counter:
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


class _RunReporter(Reporter):
    """Progress of a confirmation; see `Reporter`."""

    def __init__(
        self,
        ledger: RunLedger,
        settings: TunerSettings,
        quality: ObjectiveFrame,
        watch: Watch,
        listener: Listener,
        counter: _Counter,
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
        eta = self._watch.sitting_s / worked * left if worked > 0 else None
        self._listener.on_progress(counter.progress(what, steps, step, eta_seconds=eta))


def confirmation_settings(
    *,
    pack_size: int,
    memory_limit: int | None,
    device: str,
    total_steps: int,
    head_params: int,
    states: Path,
) -> TunerSettings:
    """What packs of a confirmation need of a study's settings: the full budget and no other rung.

    Args:
        pack_size: Most lanes of a pack.
        memory_limit: Lanes that have fitted where more did not, or None.
        device: Its kind.
        total_steps: Of the full budget.
        head_params: Parameters of the task head.
        states: The study's folder of lane states; those of a confirmation lie apart within it.
    """
    return TunerSettings(
        trials=0,
        proposals=0,
        pack_size=pack_size,
        memory_limit=memory_limit,
        device=device,
        rung_steps={FULL: total_steps},
        baselines={},
        enqueued=(),
        head_params=head_params,
        bounds=(),
        wall_clock_s=None,
        train_s=None,
        stop_after_s=None,
        states=states / "confirmed",
        accuracy_like=False,
        stops=False,
    )
