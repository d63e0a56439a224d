"""One runner at work: a pack to its next rung, trained, saved, measured and recorded."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autopeft.errors import InterruptedStudyError, StorageError, TrialError
from autopeft.execution.base import Result, Run, Runner
from autopeft.execution.states import CohortStates
from autopeft.searchers.base import Problem
from autopeft.study.disk import disk_fault
from autopeft.study.records import Measurement, TrialRecord, TrialState, TrialUpdate
from autopeft.tuner.costs import costs, kept, reached_costs
from autopeft.tuner.failures import Failure, Job
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.patience import OutputPatience
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.waiting import Waiting
from autopeft.tuner.watch import Watch

logger = logging.getLogger(__name__)

SAVE_S = 540.0
"""Lane state is saved after so long, at the next step: at least every ten minutes."""

SPEND_S = 5.0
"""What a pack takes is noted this often, so that a kill leaves little that nobody counted."""


class Station:
    """Takes packs of one study to their next rung, on one runner.

    Args:
        runner: Trains.
        ledger: The study.
        problem: Its objectives.
        settings: Its rungs.
        watch: When to stop.
        reporter: Whom to tell.
        waiting: Since when trials wait.
        patience: Waits where there is no room to save.

    Attributes:
        runner: Trains.
    """

    def __init__(
        self,
        runner: Runner,
        ledger: Ledger,
        problem: Problem,
        settings: TunerSettings,
        watch: Watch,
        reporter: Reporter,
        waiting: Waiting,
        patience: OutputPatience,
    ) -> None:
        self.runner, self._ledger, self._problem = runner, ledger, problem
        self._settings, self._watch, self._reporter = settings, watch, reporter
        self._waiting, self._patience = waiting, patience
        self._run: Run | None = None
        self._numbers: list[int] = []
        self._saved_step = 0

    def release(self) -> None:
        """Give back the memory of the last pack, for what is to run by itself."""
        self._run, self._numbers = None, []

    def attempt(self, job: Job, share: float) -> Failure | None:
        """Train a pack to a rung; how it failed, with nothing of it kept in memory, or None.

        Raises:
            InterruptedStudyError: Asked to stop; the lanes are saved.
            OutputError: There is no room for what is written; nothing of the pack is in memory.
        """
        if self._watch.stopping():
            raise self._watch.stopped()
        numbers = job.numbers
        fresh = [n for n in numbers if self._ledger.trial(n).state is TrialState.WAITING]
        if fresh:
            self._ledger.start(fresh, self.runner.identity)
        try:
            self._to_rung(job, share)
        except InterruptedStudyError as error:
            if self._run is not None and self._run.step != self._saved_step:
                self._watch.lost(numbers, error.message)
            raise
        except OSError as error:
            self.release()
            if fault := disk_fault(error):  # of this very process
                raise fault from error
            raise
        except (TrialError, RuntimeError) as error:
            self.release()
            # A runner's own traceback is in its log; one of this process is worth showing.
            told = None if isinstance(error, TrialError) else error
            logger.info("trials %s failed: %s", numbers, error, exc_info=told)
            failure = Failure.of(error, self.runner.last_lines())
            self._watch.lost(numbers, failure.message)
            return failure
        return None

    # -- training -----------------------------------------------------------------------------

    def _to_rung(self, job: Job, share: float) -> None:
        trials, numbers = job.trials, job.numbers
        states = CohortStates(self._settings.states, trials[0].pack)
        run = self._started(job, states)
        self._train(run, numbers, self._settings.rung_steps[share], states)
        self._save(run, numbers, states)  # an evaluation may take longer than a signal leaves
        self._reporter.report("evaluating", numbers, run.step)
        self._watch.renew()
        began = time.perf_counter()
        results = run.measure()
        self._ledger.spend(evaluation_seconds=time.perf_counter() - began)
        self._record(run, results, trials, share)
        self._waiting.expect(numbers)

    def _started(self, job: Job, states: CohortStates) -> Run:
        """The pack, from its lanes' newest states; the running one where it is the same."""
        numbers = job.numbers
        if self._run is not None and numbers == self._numbers:
            return self._run
        self._run = None  # give its memory back before the next pack takes some
        saved = [(number, states.newest(number)) for number in numbers]
        resume: dict[int, Path] = {number: lane.path for number, lane in saved if lane}
        self._run = self.runner.start(
            [(trial.number, trial.configuration) for trial in job.trials],
            resume=resume,
            waited=self._waiting.seconds(numbers),
            micro_batch_size=job.micro_batch_size,
        )
        self._numbers, self._saved_step = numbers, self._run.step
        return self._run

    def _train(self, run: Run, numbers: Sequence[int], until: int, states: CohortStates) -> None:
        spent = Spending(self._ledger, len(numbers), run.step)
        saved = time.monotonic()

        def on_step(step: int) -> bool:
            with self._saving_first():
                self._reporter.step(numbers, step)
                spent.note(step)
            return time.monotonic() - saved < SAVE_S and not self._watch.stopping()

        try:
            while not run.train(until, on_step=on_step):
                with self._saving_first():
                    spent.note(run.step, now=True)
                self._save(run, numbers, states)
                saved = time.monotonic()
                if self._watch.stopping():
                    raise self._watch.stopped()
        finally:
            with self._saving_first():
                spent.note(run.step, now=True)

    @contextmanager
    def _saving_first(self) -> Iterator[None]:
        """Once a stop is asked for, a database that fails is told of after the lanes are saved."""
        try:
            yield
        except StorageError:
            if not self._watch.reason:
                raise

    def _save(self, run: Run, numbers: Sequence[int], states: CohortStates) -> None:
        """Save the lanes, and before them their curves, which a resumed run cannot redraw.

        Where a stop was asked for and the database cannot be written, the lanes are saved
        nevertheless: a curve with a gap is less of a loss than the training.
        """
        curves = [
            TrialUpdate(number, tuple(points), optimizer_steps=run.step)
            for number, points in run.curve().items()
        ]
        failed: StorageError | None = None
        try:
            self._ledger.update(curves)
        except StorageError as error:
            if not self._watch.reason:
                raise
            failed = error
        self._patience.call(lambda: states.save(run, numbers))
        self._watch.saved(numbers)
        self._saved_step = run.step
        if failed is not None:
            raise failed

    # -- recording ----------------------------------------------------------------------------

    def _record(
        self, run: Run, results: Sequence[Result], trials: Sequence[TrialRecord], share: float
    ) -> None:
        """Store what a pack reached; diverged lanes end here, and all do at the full budget."""
        by_number, curves = {trial.number: trial for trial in trials}, run.curve()
        updates = [
            self._update(run, result, by_number[result.number], share, curves[result.number])
            for result in results
        ]
        self._ledger.update(updates)
        for update in updates:
            if update.state is not None:
                self._reporter.ended(self._ledger.trial(update.number))

    def _update(
        self,
        run: Run,
        result: Result,
        trial: TrialRecord,
        share: float,
        curve: Sequence[Measurement],
    ) -> TrialUpdate:
        measured = [
            Measurement(run.step, metric, "validation", value, rung=share)
            for metric, value in result.values.items()
        ]
        values = {**costs(self._problem, trial), **result.values}
        objectives: dict[str, float | None] = {
            frame.name: values.get(frame.name) for frame in self._problem.frame
        }
        completed = TrialState.COMPLETED if share == 1.0 else None
        return TrialUpdate(
            result.number,
            (*curve, *measured),
            objectives,
            rung=share,
            optimizer_steps=run.step,
            profile={
                **run.profile(result.number),
                **kept(trial.profile),
                **reached_costs(result.values),
            },
            state=TrialState.FAILED if result.diverged else completed,
            cause="diverged" if result.diverged else None,
            message=f"not finite by step {run.step}" if result.diverged else None,
        )


class Spending:
    """What a pack in training takes, added to the study's account as it goes.

    Args:
        ledger: The study.
        lanes: Of the pack.
        step: Where it starts.
    """

    def __init__(self, ledger: Ledger, lanes: int, step: int) -> None:
        self._ledger, self._lanes, self._step = ledger, lanes, step
        self._noted = time.perf_counter()

    def note(self, step: int, *, now: bool = False) -> None:
        """Add what was taken since the last note, now or where that is a while ago."""
        elapsed = time.perf_counter() - self._noted
        if (not now and elapsed < SPEND_S) or (step == self._step and elapsed < 1e-3):
            return
        steps = float((step - self._step) * self._lanes)
        self._ledger.spend(train_seconds=elapsed, optimizer_steps=steps)
        self._step, self._noted = step, time.perf_counter()
