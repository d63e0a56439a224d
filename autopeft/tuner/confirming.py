"""Chosen trials trained again: at the full budget, with other seeds, in packs of one seed.

The mechanism is the search's: packs of trials that share batches, halved where memory is short,
lane states saved on the way, a lease on the study. What differs is where results go (runs of a
confirmation, not trials), that a pack's seed is a replicate of the study's, and that the last
lane states are kept: the test split may be opened later, without training anew.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autopeft.errors import StorageError, StudyHeldError, TrialError
from autopeft.execution.base import Executor, Run
from autopeft.execution.states import CohortStates
from autopeft.searchers.base import Problem
from autopeft.study.confirmation import Opening
from autopeft.study.ending import Interruption
from autopeft.study.progress import Listener, Progress
from autopeft.study.records import (
    TrialRecord,
    TrialState,
)
from autopeft.study.sitting import Sitting
from autopeft.study.store import Store
from autopeft.tuner.away import first_there
from autopeft.tuner.packing import grouped
from autopeft.tuner.packs import PackTraining
from autopeft.tuner.run_ledger import FULL, RunLedger, SeededExecutor
from autopeft.tuner.run_progress import RunCounter, RunReporter
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.torn import drop_torn
from autopeft.tuner.watch import Watch


class ConfirmationTraining:
    """Trains chosen trials with several seeds, as the study's only coordinator.

    Args:
        store: Keeps the study.
        name: Its name.
        token: Of its lease, which the caller holds.
        problem: Its objectives and backbone.
        executor: Its runners train.
        settings: What a pack needs to know, see `confirmation_settings`.
        listener: Watches.
        sitting: Asks for an early end.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        token: int,
        *,
        problem: Problem,
        executor: Executor,
        settings: TunerSettings,
        listener: Listener,
        sitting: Sitting,
    ) -> None:
        self._store, self._name, self._token = store, name, token
        self._problem, self._executor, self._settings = problem, executor, settings
        self._listener = listener
        self._ledger = RunLedger(store, name, token, {}, 0)
        self._watch = Watch(self._ledger, settings, sitting, apart=executor.apart)
        executor.attend(self._watch.stopping)

    def close(self) -> None:
        """End the runners."""
        self._executor.close()

    def run(self, trials: Sequence[TrialRecord], replicates: Sequence[int]) -> None:
        """Train every trial with every replicate; what has a result stays.

        Raises:
            InterruptedStudyError: Stopped before the end, with everything saved.
            OutputError: There was no room to save them for too long.
            AutopeftError: Several lone runs in a row failed with an error of the program.
        """
        numbers = [trial.number for trial in trials]
        self._store.requeue_confirmations(self._name, self._token)
        self._store.add_confirmations(self._name, self._token, numbers, replicates)
        counter = RunCounter(self._store, self._name, numbers, replicates)
        try:
            with self._watch.training():
                for replicate in replicates:
                    self._replicate(trials, replicate, counter)
        except (Exception, KeyboardInterrupt) as error:
            with suppress(StorageError, StudyHeldError):
                self._ledger.interrupt(Interruption.by(error))
            raise
        finally:
            self._watch.note()
        self._listener.on_progress(counter.progress("finished", self._settings.total_steps))

    def _replicate(
        self, trials: Sequence[TrialRecord], replicate: int, counter: RunCounter
    ) -> None:
        ledger = RunLedger(
            self._store, self._name, self._token, {t.number: t for t in trials}, replicate
        )
        waiting = [trial for trial in ledger.trials() if not trial.state.final]
        reporter = RunReporter(
            ledger, self._settings, self._problem.frame[0], self._watch, self._listener, counter
        )
        states = CohortStates(self._settings.states, replicate)
        drop_torn(ledger, self._settings, reporter, [replicate])
        executor = SeededExecutor(self._executor, replicate)
        packs = PackTraining(
            ledger, self._problem, executor, self._settings, self._watch, reporter
        )
        packs.expect([trial.number for trial in waiting])
        size = packs.size(len(waiting))
        try:
            packs.run(
                [
                    alike
                    for pack in grouped(waiting, self._problem.anatomy, size=size)
                    for alike in _by_step(pack, states)
                ],
                FULL,
            )
        finally:
            packs.close()

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
                with self._watch.training():
                    self._test_pack(pack, replicate, opening)

    def _test_pack(self, pack: Sequence[TrialRecord], replicate: int, opening: Opening) -> None:
        if self._watch.stopping():
            raise self._watch.stopped()
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
        runners = self._executor.runners
        run = runners[first_there(runners, self._watch)].start(
            lanes,
            resume=resume if whole else {},
            waited=dict.fromkeys(saved, 0.0),
            replicate=replicate,
        )
        if not whole and not run.train(total, on_step=lambda step: not self._watch.stopping()):
            raise self._watch.stopped()
        return run


def _by_step(pack: Sequence[TrialRecord], states: CohortStates) -> list[list[TrialRecord]]:
    """Lanes that a kill left at one step, together; the farthest first."""
    at: dict[int, list[TrialRecord]] = {}
    for trial in pack:
        saved = states.newest(trial.number)
        at.setdefault(saved.step if saved else 0, []).append(trial)
    return [at[step] for step in sorted(at, reverse=True)]


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
        states=states / "confirmed",
        accuracy_like=False,
        stops=False,
    )
