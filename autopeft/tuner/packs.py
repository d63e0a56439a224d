"""One pack through its rungs: train, measure, record, and decide who goes on."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from autopeft.errors import AutopeftError, TrialError
from autopeft.execution.base import Result, Run, Runner
from autopeft.execution.states import PackStates
from autopeft.searchers import front as fronts
from autopeft.searchers.base import Problem
from autopeft.searchers.rungs import noise_margin, stopped_at_rung
from autopeft.study.records import Measurement, TrialRecord, TrialState
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.watch import Watch

logger = logging.getLogger(__name__)

ERRORS_IN_A_ROW = 3
"""Lone trials that may fail one after the other before the fault is held to be elsewhere."""

SAVE_S = 600.0
"""Lane state is saved at least this often."""

PLAIN_MARGIN = 0.05
"""Utility below which qualities that are no share of correct answers are not told apart."""


class PackTraining:
    """Takes packs of one study through the rungs.

    Args:
        ledger: The study.
        problem: Its objectives.
        runner: Trains.
        settings: Its rungs.
        watch: When to stop.
        reporter: Whom to tell.
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
        self._quality = problem.frame[0]
        self._saved = time.monotonic()
        self._errors = 0

    def run(self, trials: Sequence[TrialRecord]) -> None:
        """Train a pack to its end; one that fails is halved until a lone trial fails.

        Raises:
            InterruptedStudyError: Asked to stop; the lanes are saved.
            AutopeftError: `ERRORS_IN_A_ROW` lone trials failed with an error of the program.
        """
        packs = [list(trials)]
        while packs:
            pack = packs.pop(0)
            failure = self._attempt(pack)
            if failure is None:
                self._errors = 0
            else:
                packs = [*self._halves(pack, *failure), *packs]

    def _attempt(self, trials: Sequence[TrialRecord]) -> tuple[str, str] | None:
        """Train a pack; cause and message where it fails, with nothing of it kept in memory."""
        self._ledger.start([trial.number for trial in trials])
        self._saved = time.monotonic()
        try:
            self._through_rungs(trials)
        except (TrialError, RuntimeError) as error:
            numbers = [trial.number for trial in trials]
            logger.warning("trials %s failed: %s", numbers, error, exc_info=error)
            cause = error.cause if isinstance(error, TrialError) else "error"
            return cause, (str(error).splitlines() or [type(error).__name__])[0]
        return None

    def _halves(
        self, trials: Sequence[TrialRecord], cause: str, message: str
    ) -> list[list[TrialRecord]]:
        """What to try after a failure: the halves of a pack; a lone trial has failed."""
        left = [trial for trial in trials if not self._ledger.trial(trial.number).state.final]
        if left:
            PackStates(self._settings.states, left[0].pack).clear()
        if len(left) > 1:
            shown = ", ".join(str(trial.number) for trial in left)
            self._reporter.event(f"trials {shown}: {message}; halving the pack")
            middle = len(left) // 2
            return [left[:middle], left[middle:]]
        for trial in left:
            self._finish(trial.number, TrialState.FAILED, cause=cause, message=message)
            self._errors += cause == "error"
        if self._errors >= ERRORS_IN_A_ROW:
            raise AutopeftError(
                f"{self._errors} trials in a row failed with an error, the last: {message}",
                hint="mend the cause; the same command goes on after these trials",
            )
        return []

    def _through_rungs(self, trials: Sequence[TrialRecord]) -> None:
        states = PackStates(self._settings.states, trials[0].pack)
        lanes = list(trials)
        run = self._start(lanes, states)
        for share, step in self._settings.rung_steps.items():
            if step < run.step:
                continue
            numbers = [trial.number for trial in lanes]
            self._train(run, numbers, step, states)
            if share < 1.0:
                self._save(run, states)
            self._reporter.report("evaluating", numbers, run.step)
            self._watch.renew()
            leaving = self._record_rung(run, run.measure(), lanes, share)
            going_on = [trial for trial in lanes if trial.number not in leaving]
            if not going_on:
                break
            if leaving:
                run = self._start(going_on, states)
            lanes = going_on
        states.clear()

    def _start(self, trials: Sequence[TrialRecord], states: PackStates) -> Run:
        lanes = [(trial.number, trial.configuration) for trial in trials]
        saved: Path | None = states.latest([trial.number for trial in trials])
        return self._runner.start(lanes, resume=saved)

    def _train(self, run: Run, numbers: Sequence[int], until: int, states: PackStates) -> None:
        started, before = time.perf_counter(), run.step

        def on_step(step: int) -> bool:
            self._reporter.step(numbers, step)
            if time.monotonic() - self._saved > SAVE_S:
                self._save(run, states)
            return not self._watch.stopping()

        reached = run.train(until, on_step=on_step)
        self._ledger.spend(
            train_seconds=time.perf_counter() - started,
            optimizer_steps=float((run.step - before) * len(numbers)),
        )
        if not reached:
            self._save(run, states)
            raise self._watch.interrupt()

    def _save(self, run: Run, states: PackStates) -> None:
        """Save the lanes, and before them their curves, which a resumed run cannot redraw."""
        for number, points in run.curve().items():
            self._ledger.record(number, measurements=points, optimizer_steps=run.step)
        states.save(run)
        self._saved = time.monotonic()

    # -- at a rung ----------------------------------------------------------------------------

    def _record_rung(
        self, run: Run, results: Sequence[Result], lanes: Sequence[TrialRecord], share: float
    ) -> set[int]:
        """Store a rung's measurements and end the trials that end here; their numbers."""
        by_number = {trial.number: trial for trial in lanes}
        curves = run.curve()
        for result in results:
            self._record(run, result, by_number[result.number], share, curves[result.number])
        diverged = {result.number for result in results if result.diverged}
        final = set(by_number) if share == 1.0 else set()
        leaving = final | diverged | (set() if final else self._stopped(lanes, share))
        for number in sorted(leaving):
            profile = run.profile(number)
            if number in diverged:
                message = f"not finite by step {run.step}"
                self._finish(
                    number,
                    TrialState.FAILED,
                    cause="diverged",
                    message=message,
                    profile=profile,
                )
            else:
                state = TrialState.COMPLETED if share == 1.0 else TrialState.STOPPED
                self._finish(number, state, profile=profile)
        return leaving

    def _record(
        self,
        run: Run,
        result: Result,
        trial: TrialRecord,
        share: float,
        curve: Sequence[Measurement],
    ) -> None:
        measured = [
            Measurement(run.step, metric, "validation", value, rung=share)
            for metric, value in result.values.items()
        ]
        known = self._problem.known(trial.configuration)
        objectives: dict[str, float | None] = {
            frame.name: known.get(frame.name, result.values.get(frame.name))
            for frame in self._problem.frame
        }
        self._ledger.record(
            result.number,
            measurements=[*curve, *measured],
            objectives=objectives,
            rung=share,
            optimizer_steps=run.step,
        )

    def _stopped(self, lanes: Sequence[TrialRecord], share: float) -> set[int]:
        """Trials that a rung ends, by all that was measured there so far."""
        step = self._settings.rung_steps[share]
        values = self._ledger.values_at(step=step, metric=self._quality.name)
        measured: dict[int, tuple[float, ...]] = {}
        for trial in self._ledger.trials():
            if trial.number in values:
                known = self._problem.known(trial.configuration)
                objectives = {**known, self._quality.name: values[trial.number]}
                measured[trial.number] = fronts.utilities(self._problem.frame, objectives)
        candidates = [trial.number for trial in lanes if trial.baseline is None]
        return stopped_at_rung(candidates, measured, margin=self._margin(measured))

    def _margin(self, measured: Mapping[int, tuple[float, ...]]) -> float:
        if not measured or not self._settings.accuracy_like:
            return PLAIN_MARGIN
        worst, best = self._quality.worst, self._quality.best
        top = worst + max(point[0] for point in measured.values()) * (best - worst)
        return noise_margin(top, self._problem.n_validation, worst=worst, best=best)

    def _finish(
        self,
        number: int,
        state: TrialState,
        *,
        cause: str | None = None,
        message: str | None = None,
        profile: Mapping[str, object] | None = None,
    ) -> None:
        trial = self._ledger.finish(number, state, cause=cause, message=message, profile=profile)
        self._reporter.ended(trial)
