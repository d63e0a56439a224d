"""One pack on its way to a rung: train, save, measure, record; halve it where it fails."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from autopeft.errors import AutopeftError, TrialError
from autopeft.execution.base import Result, Run, Runner
from autopeft.execution.states import CohortStates
from autopeft.searchers.base import Problem
from autopeft.study.records import Measurement, TrialRecord, TrialState, TrialUpdate
from autopeft.tuner.costs import costs, kept
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.watch import Watch

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "out-of-memory"

ERRORS_IN_A_ROW = 3
"""Lone trials that may fail one after the other before the fault is held to be elsewhere."""

SAVE_S = 600.0
"""Lane state is saved at least this often."""


def failure_of(error: Exception) -> tuple[str, str]:
    """Cause and message of a trial that an error ended."""
    cause = error.cause if isinstance(error, TrialError) else "error"
    return cause, (str(error).splitlines() or [type(error).__name__])[0]


class PackTraining:
    """Takes packs of one study to their next rung.

    Args:
        ledger: The study.
        problem: Its objectives.
        runner: Trains.
        settings: Its rungs.
        watch: When to stop.
        reporter: Whom to tell.

    Attributes:
        size: Most lanes of a pack: the study's, or what memory has allowed so far.
    """

    def __init__(
        self,
        ledger: Ledger,
        problem: Problem,
        runner: Runner,
        settings: TunerSettings,
        watch: Watch,
        reporter: Reporter,
    ) -> None:
        self._ledger, self._problem, self._runner = ledger, problem, runner
        self._settings, self._watch, self._reporter = settings, watch, reporter
        self.size = min(settings.pack_size, settings.memory_limit or settings.pack_size)
        self._run: Run | None = None
        self._numbers: list[int] = []
        self._ready: dict[int, float] = {}
        self._saved = time.monotonic()
        self._errors = 0

    def expect(self, numbers: Sequence[int]) -> None:
        """From now on these trials wait for their packs."""
        self._ready.update(dict.fromkeys(numbers, time.monotonic()))

    def run(self, trials: Sequence[TrialRecord], share: float) -> None:
        """Train a pack to a rung and record it; one that fails is halved down to lone trials.

        Args:
            trials: Lanes of one cohort at one common step; not final.
            share: The rung.

        Raises:
            InterruptedStudyError: Asked to stop; the lanes are saved.
            AutopeftError: `ERRORS_IN_A_ROW` lone trials failed with an error of the program.
        """
        packs = [list(trials)]
        too_large: list[int] = []
        while packs:
            pack = packs.pop(0)
            failure = self._attempt(pack, share)
            if failure is None:
                self._errors = 0
                continue
            self.expect([trial.number for trial in pack])
            if failure[0] == OUT_OF_MEMORY:
                too_large.append(len(pack))
            packs = [*self._halves(pack, *failure), *packs]
        self._remember(too_large)

    def _attempt(self, trials: Sequence[TrialRecord], share: float) -> tuple[str, str] | None:
        """Train a pack; cause and message where it fails, with nothing of it kept in memory."""
        numbers = [trial.number for trial in trials]
        fresh = [n for n in numbers if self._ledger.trial(n).state is TrialState.WAITING]
        if fresh:
            self._ledger.start(fresh)
        self._saved = time.monotonic()
        try:
            self._to_rung(trials, share)
        except (TrialError, RuntimeError) as error:
            self.release()
            logger.warning("trials %s failed: %s", numbers, error, exc_info=error)
            return failure_of(error)
        return None

    def _halves(
        self, trials: Sequence[TrialRecord], cause: str, message: str
    ) -> list[list[TrialRecord]]:
        """What to try after a failure: the halves of a pack; a lone trial has failed."""
        if len(trials) > 1:
            shown = ", ".join(str(trial.number) for trial in trials)
            self._reporter.event(f"trials {shown}: {message}; halving the pack")
            middle = len(trials) // 2
            return [list(trials[:middle]), list(trials[middle:])]
        self.fail(trials[0].number, cause, message)
        return []

    def fail(self, number: int, cause: str, message: str) -> None:
        """End a lone trial that has failed.

        Raises:
            AutopeftError: As many as `ERRORS_IN_A_ROW` failed with an error of the program.
        """
        failed = TrialUpdate(number, state=TrialState.FAILED, cause=cause, message=message)
        self._ledger.update([failed])
        self._reporter.ended(self._ledger.trial(number))
        self._errors += cause == "error"
        if self._errors >= ERRORS_IN_A_ROW:
            raise AutopeftError(
                f"{self._errors} trials in a row failed with an error, the last: {message}",
                hint="mend the cause; the same command goes on after these trials",
            )

    def release(self) -> None:
        """Give back the memory of the last pack, for what is to run by itself."""
        self._run, self._numbers = None, []

    def _remember(self, too_large: Sequence[int]) -> None:
        """Keep later packs within what has fitted, unless a lone trial was too large by itself."""
        if not too_large or 1 in too_large:
            return
        smallest = min(too_large)
        self.size = min(self.size, smallest - smallest // 2)
        limit = {"lanes": self.size, "device": self._settings.device}
        self._ledger.note(memory_limit=limit)
        self._reporter.event(
            f"packs of at most {self.size} from here on: the device's memory holds no more"
        )

    # -- training -----------------------------------------------------------------------------

    def _to_rung(self, trials: Sequence[TrialRecord], share: float) -> None:
        states = CohortStates(self._settings.states, trials[0].pack)
        run, numbers = self._started(trials, states), [trial.number for trial in trials]
        self._train(run, numbers, self._settings.rung_steps[share], states)
        if share < 1.0:
            self._save(run, numbers, states)
        self._reporter.report("evaluating", numbers, run.step)
        self._watch.renew()
        self._record(run, run.measure(), trials, share)
        self.expect(numbers)

    def _started(self, trials: Sequence[TrialRecord], states: CohortStates) -> Run:
        """The pack, from its lanes' newest states; the running one where it is the same."""
        numbers = [trial.number for trial in trials]
        if self._run is not None and numbers == self._numbers:
            return self._run
        self._run = None  # give its memory back before the next pack takes some
        saved = [(number, states.newest(number)) for number in numbers]
        resume: dict[int, Path] = {number: lane.path for number, lane in saved if lane}
        now = time.monotonic()
        self._run = self._runner.start(
            [(trial.number, trial.configuration) for trial in trials],
            resume=resume,
            waited={number: now - self._ready.get(number, now) for number in numbers},
        )
        self._numbers = numbers
        return self._run

    def _train(self, run: Run, numbers: Sequence[int], until: int, states: CohortStates) -> None:
        started, before = time.perf_counter(), run.step

        def on_step(step: int) -> bool:
            self._reporter.step(numbers, step)
            if time.monotonic() - self._saved > SAVE_S:
                self._save(run, numbers, states)
            return not self._watch.stopping()

        reached = run.train(until, on_step=on_step)
        self._ledger.spend(
            train_seconds=time.perf_counter() - started,
            optimizer_steps=float((run.step - before) * len(numbers)),
        )
        if not reached:
            self._save(run, numbers, states)
            raise self._watch.interrupt()

    def _save(self, run: Run, numbers: Sequence[int], states: CohortStates) -> None:
        """Save the lanes, and before them their curves, which a resumed run cannot redraw."""
        self._ledger.update(
            [
                TrialUpdate(number, tuple(points), optimizer_steps=run.step)
                for number, points in run.curve().items()
            ]
        )
        states.save(run, numbers)
        self._saved = time.monotonic()

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
        values = {**result.values, **costs(self._problem, trial)}
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
            profile={**run.profile(result.number), **kept(trial.profile)},
            state=TrialState.FAILED if result.diverged else completed,
            cause="diverged" if result.diverged else None,
            message=f"not finite by step {run.step}" if result.diverged else None,
        )
