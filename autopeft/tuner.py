"""The loop of a search: ask -> run a pack -> record -> tell, until the budget is spent.

Everything that must survive is in the store before the next thing starts, so the loop can be
killed anywhere: trials are stored (with their pack) before they train, measurements at every rung,
lane states beside them. A restart tells the searcher all that is known, in the order of the trial
numbers, trains what was left waiting with the same lanes, and goes on asking.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopeft.configuration import Configuration
from autopeft.errors import InterruptedStudyError, TrialError
from autopeft.execution.base import Result, Run, Runner
from autopeft.execution.states import PackStates
from autopeft.searchers import front as fronts
from autopeft.searchers.base import Observation, Problem, Searcher
from autopeft.searchers.front import Bound
from autopeft.searchers.rungs import noise_margin, stopped_at_rung
from autopeft.study.progress import Listener, Progress, Stopper
from autopeft.study.records import (
    Measurement,
    NewTrial,
    Origin,
    StudyState,
    TrialRecord,
    TrialState,
)
from autopeft.study.store import Store

logger = logging.getLogger(__name__)

LEASE_S = 180.0
"""Length of the study's lease: longer than a suggestion or a rung's evaluation takes."""

POLL_S = 2.0
"""Between looks at the database for a stop request, and renewals of the lease."""

SAVE_S = 600.0
"""Lane state is saved at least this often."""


@dataclass(frozen=True)
class TunerSettings:
    """What a study fixes for its search.

    Attributes:
        trials: Budget of trials, baselines not counted.
        pack_size: Lanes of a pack, and proposals of an ask.
        rung_steps: Optimizer step at the end of each rung, ascending by share.
        baselines: Run first, by name.
        enqueued: Run next, within the budget.
        head_params: Parameters of the task head.
        bounds: Caps and floors of the front.
        wall_clock_s: Seconds over all sittings, or None.
        train_s: Device seconds of training, or None.
        stop_after_s: Seconds of this sitting, or None.
        states: Folder of the lane states.
        accuracy_like: Whether quality is a share of correct answers (binomial noise).
    """

    trials: int
    pack_size: int
    rung_steps: Mapping[float, int]
    baselines: Mapping[str, Configuration]
    enqueued: Sequence[Configuration]
    head_params: int
    bounds: Sequence[Bound]
    wall_clock_s: float | None
    train_s: float | None
    stop_after_s: float | None
    states: Path
    accuracy_like: bool


class Tuner:
    """Runs one study to its end, as its only coordinator.

    Args:
        store: Keeps the study.
        name: The study's name.
        token: Of the lease, held by the caller.
        problem: What the searcher may know.
        searcher: Proposes.
        runner: Trains.
        settings: Fixed by the study.
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
        searcher: Searcher,
        runner: Runner,
        settings: TunerSettings,
        listener: Listener,
        stopper: Stopper,
    ) -> None:
        self._store, self._name, self._token = store, name, token
        self._problem, self._searcher, self._runner = problem, searcher, runner
        self._settings, self._listener, self._stopper = settings, listener, stopper
        self._quality = problem.frame[0]
        self._began = self._polled = self._saved = time.monotonic()
        self._wall_before = float(store.study(name).spent.get("wall_seconds", 0.0))
        self._wall_noted = self._began
        self._done_before = 0
        self._told: set[int] = set()

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Search until the budget is spent or the space is exhausted.

        Raises:
            InterruptedStudyError: Stopped before the end, with everything saved.
        """
        store, name = self._store, self._name
        store.request_stop(name, False)
        store.update_study(name, self._token, state=StudyState.RUNNING)
        lost = store.requeue_trials(name, self._token)
        if lost:
            self._listener.on_event(f"taking up trials {_numbers(lost)} again")
        trials = store.trials(name)
        self._done_before = sum(trial.state.final for trial in trials)
        self._tell(trials)
        try:
            while pack := self._next_pack():
                self._run_pack(pack)
                self._after_pack()
        finally:
            self._note_wall()
        store.update_study(name, self._token, state=StudyState.FINISHED)
        self._report("finished")

    def _next_pack(self) -> list[TrialRecord]:
        """The oldest pack with waiting trials, or a new one; empty at the end."""
        self._check_stop(force=True)
        trials = self._store.trials(self._name)
        waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
        if not waiting:
            waiting = self._propose(trials)
        first = min((trial.pack for trial in waiting), default=0)
        return [trial for trial in waiting if trial.pack == first]

    def _propose(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        pack = max((trial.pack for trial in trials), default=-1) + 1
        if not trials and self._settings.baselines:
            return self._add(
                [
                    self._new_trial(configuration, Origin.BASELINE, pack, baseline=name)
                    for name, configuration in self._settings.baselines.items()
                ]
            )
        begun = [trial for trial in trials if trial.baseline is None]
        q = min(self._settings.pack_size, self._settings.trials - len(begun))
        if q <= 0 or self._budget_over():
            return []
        enqueued = self._settings.enqueued
        if len(begun) < len(enqueued):
            part = enqueued[len(begun) : len(begun) + q]
            return self._add([self._new_trial(c, Origin.ENQUEUED, pack) for c in part])
        self._report("suggesting")
        started = time.perf_counter()
        proposals = self._searcher.ask(q)
        self._spend(suggest_seconds=time.perf_counter() - started)
        if not proposals:
            self._listener.on_event("every feasible configuration of the space has been tried")
            return []
        return self._add(
            [
                self._new_trial(p.configuration, p.origin, pack, details=p.details)
                for p in proposals
            ]
        )

    def _new_trial(
        self,
        configuration: Configuration,
        origin: Origin,
        pack: int,
        *,
        baseline: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> NewTrial:
        params = self._problem.site_params(configuration)
        return NewTrial(
            configuration=configuration,
            origin=origin,
            trainable_params=sum(params.values()),
            head_params=self._settings.head_params,
            pack=pack,
            baseline=baseline,
            known=self._problem.known(configuration),
            details=details or {},
        )

    def _add(self, trials: Sequence[NewTrial]) -> list[TrialRecord]:
        return self._store.add_trials(self._name, self._token, trials)

    # -- one pack -----------------------------------------------------------------------------

    def _run_pack(self, trials: Sequence[TrialRecord]) -> None:
        """Train a pack through its rungs; one that fails is halved until a lone trial fails."""
        numbers = [trial.number for trial in trials]
        self._store.start_trials(self._name, self._token, numbers)
        self._saved = time.monotonic()
        try:
            self._through_rungs(trials)
        except (TrialError, RuntimeError) as error:
            cause = error.cause if isinstance(error, TrialError) else "error"
            self._failed_pack(trials, error, cause)

    def _failed_pack(self, trials: Sequence[TrialRecord], error: Exception, cause: str) -> None:
        logger.warning("trials %s: %s", [trial.number for trial in trials], error, exc_info=error)
        current = {trial.number: trial for trial in self._store.trials(self._name)}
        left = [trial for trial in trials if not current[trial.number].state.final]
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if len(left) == 1:
            self._finish(left[0].number, TrialState.FAILED, cause=cause, message=message)
        elif left:
            self._listener.on_event(
                f"trials {_numbers([t.number for t in left])}: {message}; halving the pack"
            )
            middle = len(left) // 2
            for half in (left[:middle], left[middle:]):
                PackStates(self._settings.states, half[0].pack).clear()
                self._run_pack(half)

    def _through_rungs(self, trials: Sequence[TrialRecord]) -> None:
        lanes = {trial.number: trial for trial in trials}
        states = PackStates(self._settings.states, trials[0].pack)
        run = self._start(trials, states.latest(list(lanes)))
        for share, step in self._settings.rung_steps.items():
            if step < run.step:
                continue
            self._train(run, list(lanes), step, states)
            if share < 1.0:
                states.save(run)
            self._report("evaluating", list(lanes), run.step)
            leaving = self._record_rung(run, run.measure(), lanes, share)
            going_on = [trial for trial in lanes.values() if trial.number not in leaving]
            if not going_on:
                break
            if leaving:
                run = self._start(going_on, states.latest([t.number for t in going_on]))
            lanes = {trial.number: trial for trial in going_on}
        states.clear()

    def _start(self, trials: Sequence[TrialRecord], states: Path | None) -> Run:
        lanes = [(trial.number, trial.configuration) for trial in trials]
        return self._runner.start(lanes, resume=states)

    def _train(self, run: Run, numbers: Sequence[int], until: int, states: PackStates) -> None:
        started, before = time.perf_counter(), run.step

        def on_step(step: int) -> bool:
            self._report("training", numbers, step)
            self._check_lease()
            if time.monotonic() - self._saved > SAVE_S:
                states.save(run)
                self._saved = time.monotonic()
            return not self._stopper.reason

        reached = run.train(until, on_step=on_step)
        self._spend(
            train_seconds=time.perf_counter() - started,
            optimizer_steps=float((run.step - before) * len(numbers)),
        )
        if not reached:
            states.save(run)
            self._interrupt()

    def _record_rung(
        self, run: Run, results: Sequence[Result], lanes: Mapping[int, TrialRecord], share: float
    ) -> set[int]:
        """Store a rung's measurements and end the trials that end here; their numbers."""
        for result in results:
            self._record_one(run, result, share)
        if share == 1.0:
            leaving = set(lanes)
        else:
            leaving = {r.number for r in results if r.diverged} | self._stopped(lanes, share)
        diverged = {result.number for result in results if result.diverged}
        for number in sorted(leaving):
            profile = run.profile(number)
            if number in diverged:
                self._finish(
                    number,
                    TrialState.FAILED,
                    cause="diverged",
                    message=f"not finite by step {run.step}",
                    profile=profile,
                )
            else:
                state = TrialState.COMPLETED if share == 1.0 else TrialState.STOPPED
                self._finish(number, state, profile=profile)
        return leaving

    def _record_one(self, run: Run, result: Result, share: float) -> None:
        measured = [
            Measurement(run.step, metric, "validation", value, rung=share)
            for metric, value in result.values.items()
        ]
        trial = self._store.trial(self._name, result.number)
        known = self._problem.known(trial.configuration)
        objectives: dict[str, float | None] = {
            frame.name: known.get(frame.name, result.values.get(frame.name))
            for frame in self._problem.frame
        }
        self._store.record(
            self._name,
            self._token,
            result.number,
            measurements=[*result.curve, *measured],
            objectives=objectives,
            rung=share,
            optimizer_steps=run.step,
        )

    def _stopped(self, lanes: Mapping[int, TrialRecord], share: float) -> set[int]:
        """Trials that a rung ends, by all that was measured there so far."""
        step = self._settings.rung_steps[share]
        measured: dict[int, tuple[float, ...]] = {}
        for trial in self._store.trials(self._name):
            value = self._quality_at(trial.number, step)
            if value is not None:
                objectives = dict(self._problem.known(trial.configuration))
                objectives[self._quality.name] = value
                measured[trial.number] = fronts.utilities(self._problem.frame, objectives)
        candidates = [number for number, trial in lanes.items() if trial.baseline is None]
        return stopped_at_rung(candidates, measured, margin=self._margin(measured))

    def _quality_at(self, number: int, step: int) -> float | None:
        for point in self._store.curve(self._name, number):
            if (point.step, point.metric, point.split) == (step, self._quality.name, "validation"):
                return point.value
        return None

    def _margin(self, measured: Mapping[int, tuple[float, ...]]) -> float:
        if not measured or not self._settings.accuracy_like:
            return 0.05
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
        self._store.finish_trial(
            self._name,
            self._token,
            number,
            state,
            cause=cause,
            message=message,
            profile=profile,
        )
        self._listener.on_event(_line(self._store.trial(self._name, number), self._quality.name))

    # -- telling ------------------------------------------------------------------------------

    def _after_pack(self) -> None:
        trials = self._store.trials(self._name)
        self._tell(trials)
        members = fronts.front(trials, self._problem.frame, self._settings.bounds)
        volume = fronts.hypervolume(fronts.utility_points(members, self._problem.frame))
        self._store.add_snapshot(
            self._name,
            self._token,
            trials=sum(trial.state.final for trial in trials),
            front=[trial.number for trial in members],
            hypervolume=volume,
        )
        self._note_wall()
        self._report("training")

    def _tell(self, trials: Sequence[TrialRecord]) -> None:
        """Tell what is new, in the order of the numbers."""
        new = [trial for trial in trials if trial.state.final and trial.number not in self._told]
        observations = [
            found for trial in new for found in [self._observation(trial)] if found is not None
        ]
        self._told.update(trial.number for trial in new)
        if observations:
            self._searcher.tell(observations)

    def _observation(self, trial: TrialRecord) -> Observation | None:
        """What a trial taught; failures of the machine teach nothing."""
        failed = trial.state is TrialState.FAILED
        if failed and trial.cause not in ("diverged", "error"):
            return None
        objectives = dict(self._problem.known(trial.configuration))
        quality = trial.objectives.get(self._quality.name)
        if failed or quality is None:
            failed, quality = True, self._quality.worst
        objectives[self._quality.name] = quality
        return Observation(
            trial.number,
            trial.configuration,
            objectives,
            rung=trial.rung or 1.0,
            failed=failed,
            baseline=trial.baseline is not None,
        )

    # -- time, stopping, reporting --------------------------------------------------------------

    def _check_lease(self) -> None:
        """Renew the lease and look for a stop request, not at every step."""
        if time.monotonic() - self._polled < POLL_S:
            return
        self._polled = time.monotonic()
        self._store.renew(self._name, self._token, LEASE_S)
        if self._store.study(self._name).stop_requested:
            self._stopper.request("asked to stop")
        elif self._sitting_over():
            self._stopper.request("the time of this sitting is over")

    def _check_stop(self, *, force: bool = False) -> None:
        if force:
            self._polled = 0.0
        self._check_lease()
        if self._stopper.reason:
            self._interrupt()

    def _interrupt(self) -> None:
        self._note_wall()
        self._store.update_study(self._name, self._token, state=StudyState.INTERRUPTED)
        self._store.requeue_trials(self._name, self._token)
        self._report("interrupted")
        raise InterruptedStudyError(
            f"study {self._name!r} was stopped ({self._stopper.reason}); all is saved",
            hint="the same command goes on",
        )

    def _sitting_over(self) -> bool:
        limit = self._settings.stop_after_s
        return limit is not None and time.monotonic() - self._began >= limit

    def _budget_over(self) -> bool:
        """Whether the study's wall clock or device time has run out."""
        wall, train = self._settings.wall_clock_s, self._settings.train_s
        if wall is not None and self._wall_before + time.monotonic() - self._began >= wall:
            return True
        spent = self._store.study(self._name).spent.get("train_seconds", 0.0)
        return train is not None and spent >= train

    def _spend(self, **spent: float) -> None:
        self._store.update_study(self._name, self._token, spent=spent)

    def _note_wall(self) -> None:
        now = time.monotonic()
        self._spend(wall_seconds=now - self._wall_noted)
        self._wall_noted = now

    def _report(self, phase: str, pack: Sequence[int] = (), step: int = 0) -> None:
        if phase == "training" and pack and step % 5:
            return
        snapshot = self._store.last_snapshot(self._name)
        trials = self._store.counts(self._name)
        done = sum(count for state, count in trials.items() if state.final)
        total = self._settings.trials + len(self._settings.baselines)
        self._listener.on_progress(
            Progress(
                study=self._name,
                phase=phase,
                done=done,
                total=total,
                pack=tuple(pack),
                step=step,
                total_steps=max(self._settings.rung_steps.values()),
                metric=self._quality.name,
                best=self._best(snapshot.front if snapshot else ()),
                hypervolume=snapshot.hypervolume if snapshot else 0.0,
                front_size=len(snapshot.front) if snapshot else 0,
                eta_seconds=self._eta(done, total, step, len(pack)),
            )
        )

    def _best(self, front: Sequence[int]) -> float | None:
        values = [
            self._store.trial(self._name, number).objectives.get(self._quality.name)
            for number in front
        ]
        present = [value for value in values if value is not None]
        if not present:
            return None
        return max(present) if self._quality.goal == "max" else min(present)

    def _eta(self, done: int, total: int, step: int, lanes: int) -> float | None:
        """Seconds left at this sitting's pace, counting the running pack's share."""
        steps = max(self._settings.rung_steps.values())
        progress = done - self._done_before + lanes * step / steps
        if progress <= 0:
            return None
        pace = (time.monotonic() - self._began) / progress
        return pace * max(0.0, total - self._done_before - progress)


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _line(trial: TrialRecord, metric: str) -> str:
    """One line about a trial that ended."""
    name = f"baseline {trial.baseline}" if trial.baseline else trial.origin.value
    head = f"trial {trial.number} ({name}) {trial.state.value}"
    if trial.cause:
        return f"{head}: {trial.cause}, {trial.message}"
    value = trial.objectives.get(metric)
    shown = "-" if value is None else f"{value:.4f}"
    where = "" if trial.rung == 1.0 else f" at rung {trial.rung}"
    return f"{head}{where}: {metric} {shown}, {trial.trainable_params:,} parameters"
