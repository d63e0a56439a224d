"""The loop of a search: ask -> run a cohort -> record -> tell, until the budget is spent.

Everything that must survive is in the store before the next thing starts, so the loop can be
killed anywhere: trials are stored (with their cohort) before they train, measurements at every
rung, lane states beside them. A restart tells the searcher all that is known, in the order of the
trial numbers, trains what was left waiting in the same packs, and goes on asking.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from autopeft import counting
from autopeft.configuration import Configuration
from autopeft.errors import StorageError, StudyHeldError
from autopeft.execution.base import Executor
from autopeft.execution.states import keep_cohorts
from autopeft.searchers import front as fronts
from autopeft.searchers.base import Observation, Problem, Proposal, Searcher
from autopeft.searchers.dominance import hypervolume
from autopeft.study.ending import Ending, Interruption, Reason
from autopeft.study.placement import resolved_details
from autopeft.study.progress import Listener
from autopeft.study.records import NewTrial, Origin, StudyState, TrialRecord, TrialState
from autopeft.study.sitting import Sitting
from autopeft.tuner.cohort import CohortTraining
from autopeft.tuner.costs import costs
from autopeft.tuner.failures import AGAINST_THE_CONFIGURATION
from autopeft.tuner.gains import short_of
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.packs import PackTraining
from autopeft.tuner.probes import Probing
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.torn import drop_torn
from autopeft.tuner.watch import Clock, Watch


class Tuner:
    """Runs one study to its end, as its only coordinator.

    Args:
        ledger: The study, under a lease that the caller holds.
        problem: What the searcher may know.
        searcher: Proposes.
        executor: Trains; closed at the end.
        settings: Fixed by the study.
        listener: Watches.
        sitting: Asks for an early end.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        problem: Problem,
        searcher: Searcher,
        executor: Executor,
        settings: TunerSettings,
        listener: Listener,
        sitting: Sitting,
    ) -> None:
        self._ledger, self._problem, self._searcher = ledger, problem, searcher
        self._settings, self._quality = settings, problem.frame[0]
        self._executor = executor
        self._watch = Watch(ledger, settings, sitting, apart=executor.apart)
        executor.attend(self._watch.stopping)
        self._reporter = Reporter(ledger, settings, self._quality, self._watch, listener)
        self._packs = PackTraining(
            ledger, problem, executor, settings, self._watch, self._reporter
        )
        probing = Probing(ledger, problem, self._packs, self._watch, self._reporter)
        self._cohorts = CohortTraining(
            ledger,
            problem,
            settings,
            self._packs,
            self._reporter,
            probing if settings.probes else None,
        )
        self._seen: set[int] = set()
        self._told: set[int] = set()
        self._ending: Ending | None = None

    def run(self) -> None:
        """Search until the budget is spent, the space is exhausted, or nothing is promised.

        Whatever ends it before its time, trials in flight wait for the next sitting, and the study
        says why (where its store can still be written).

        Raises:
            InterruptedStudyError: Stopped before the end, with everything saved.
            OutputError: There was no room to save it for too long.
            AutopeftError: Several lone trials in a row failed with an error of the program.
        """
        try:
            self._take_up()
            self._search()
        except (Exception, KeyboardInterrupt) as error:
            with suppress(StorageError, StudyHeldError):
                self._ledger.interrupt(Interruption.by(error))
            raise
        finally:
            self._executor.close()
            self._packs.close()
            self._watch.note()
        self._finish()

    def _take_up(self) -> None:
        """Go on where the last sitting ended."""
        if lost := self._ledger.begin():
            shown = ", ".join(str(number) for number in lost)
            self._reporter.event(f"taking up trials {shown} again")
        self._catch_up()

    def _search(self) -> None:
        while (cohort := self._next_cohort()) is not None:
            with self._watch.training():
                all_trained = self._cohorts.run(cohort)
            self._after_cohort()
            if not all_trained and (spent := self._watch.spent()):
                self._pause(spent)
                return

    def _pause(self, spent: Clock) -> None:
        """A budget is spent while a cohort is on its way: it waits, and may go on with more."""
        self._ledger.requeue(cause="budget", message=f"{spent} is spent")
        self._end(spent, self._begun(self._ledger.trials()))

    def _finish(self) -> None:
        """Say and store how it ended."""
        if self._ending is not None:
            self._ledger.note(ended=self._ending.to_dict())
            if self._ending.reason != "trials":
                self._reporter.event(self._ending.sentence())
        self._ledger.set_state(StudyState.FINISHED)
        self._reporter.report("finished")

    def _next_cohort(self) -> int | None:
        """The oldest cohort with waiting trials, or a new one; None at the end."""
        if self._watch.stopping():
            raise self._watch.stopped()
        trials = self._ledger.trials()
        if spent := self._watch.spent():
            self._end(spent, self._begun(trials))
            return None
        waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
        if not waiting:
            proposed = self._propose(trials)
            waiting = self._ledger.add(proposed) if proposed else []
        return min((trial.pack for trial in waiting), default=None)

    # -- proposing ----------------------------------------------------------------------------

    def _propose(self, trials: Sequence[TrialRecord]) -> list[NewTrial]:
        """The next cohort: baselines, the enqueued, earlier studies' best, the searcher's."""
        cohort = max((trial.pack for trial in trials), default=-1) + 1
        begun = self._begun(trials)
        baselines = list(self._settings.baselines.items())
        if left := baselines[len(trials) - begun :]:
            return [
                self._new_trial(configuration, Origin.BASELINE, cohort, baseline=name)
                for name, configuration in left[: self._settings.proposals]
            ]
        return self._search_on(trials, cohort, begun)

    @staticmethod
    def _begun(trials: Sequence[TrialRecord]) -> int:
        """Trials that count within the budget."""
        return sum(trial.baseline is None for trial in trials)

    def _search_on(self, trials: Sequence[TrialRecord], cohort: int, begun: int) -> list[NewTrial]:
        """What was enqueued, then what the searcher gives; nothing where the search ends."""
        q = min(self._settings.proposals, self._settings.trials - begun)
        if q <= 0:
            return self._end("trials", begun)
        if enqueued := self._settings.enqueued[begun : begun + q]:
            return [self._new_trial(each, Origin.ENQUEUED, cohort) for each in enqueued]
        first = begun - len(self._settings.enqueued)
        if known := self._settings.warm_start[first : first + q]:
            return self._proposed(known, cohort)
        proposals = self._ask(q, trials)
        if not proposals:
            return self._end("exhausted", begun)
        if gains := self._falls_short(trials, proposals):
            return self._end("min_gain", begun, gains)
        return self._proposed(proposals, cohort)

    def _proposed(self, proposals: Sequence[Proposal], cohort: int) -> list[NewTrial]:
        return [
            self._new_trial(p.configuration, p.origin, cohort, details=p.details)
            for p in proposals
        ]

    def _falls_short(
        self, trials: Sequence[TrialRecord], proposals: Sequence[Proposal]
    ) -> tuple[float, ...]:
        """What the last asks promise, where that is not enough; else ()."""
        wanted = self._settings.min_gain
        if wanted is None:
            return ()
        return short_of(wanted, trials, [each.details for each in proposals]) or ()

    def _end(self, reason: Reason, begun: int, gains: tuple[float, ...] = ()) -> list[NewTrial]:
        """Note why nothing more is proposed."""
        self._ending = Ending(
            reason,
            trials=max(0, self._settings.trials - begun),
            min_gain=self._settings.min_gain if gains else None,
            gains=gains,
            waiting=self._ledger.counts()[TrialState.WAITING],
            **self._watch.left(),
        )
        return []

    def _ask(self, q: int, trials: Sequence[TrialRecord]) -> list[Proposal]:
        self._reporter.report("suggesting")
        untold = [trial.configuration for trial in trials if trial.number not in self._told]
        with self._watch.kept(), self._watch.cut_short():
            started = time.perf_counter()
            proposals = self._searcher.ask(q, pending=untold)
            seconds = time.perf_counter() - started
        self._ledger.spend(suggest_seconds=seconds)
        return proposals

    def _new_trial(
        self,
        configuration: Configuration,
        origin: Origin,
        cohort: int,
        *,
        baseline: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> NewTrial:
        known = self._problem.known(configuration)
        built = counting.resolved(configuration, self._problem.anatomy)
        return NewTrial(
            configuration=configuration,
            origin=origin,
            trainable_params=int(known["trainable_params"]),
            head_params=self._settings.head_params,
            pack=cohort,
            baseline=baseline,
            known=known,
            details={**(details or {}), **resolved_details(configuration, built)},
        )

    # -- telling ------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Tell what earlier sittings found, and draw the front that a kill left out."""
        trials = self._ledger.trials()
        open_cohorts = {trial.pack for trial in trials if not trial.state.final}
        keep_cohorts(self._settings.states, open_cohorts)
        drop_torn(self._ledger, self._settings, self._reporter, open_cohorts)
        self._tell(trials)
        last = self._ledger.last_snapshot()
        if sum(trial.state.final for trial in trials) != (last.trials if last else 0):
            self._draw_front(trials)

    def _after_cohort(self) -> None:
        trials = self._ledger.trials()
        self._tell(trials)
        self._draw_front(trials)
        self._watch.note()
        self._reporter.report("evaluating")

    def _draw_front(self, trials: Sequence[TrialRecord]) -> None:
        members = fronts.front(trials, self._problem.frame, self._settings.bounds)
        points = fronts.utility_points(members, self._problem.frame)
        self._ledger.add_snapshot(
            trials=sum(trial.state.final for trial in trials),
            front=[trial.number for trial in members],
            hypervolume=hypervolume(points),
        )

    def _tell(self, trials: Sequence[TrialRecord]) -> None:
        """Tell what is new at every rung it reached, in the order of the numbers."""
        new = [trial for trial in trials if trial.state.final and trial.number not in self._seen]
        self._seen.update(trial.number for trial in new)
        last = [self._observation(trial) for trial in new]
        observations = [*self._on_the_way(last), *last]
        if observations:
            observations.sort(key=lambda each: (each.number, each.rung))
            self._searcher.tell(observations)
            self._told.update(observation.number for observation in observations)

    def _on_the_way(self, last: Sequence[Observation]) -> list[Observation]:
        """What the trials measured at rungs below their last one: their partial curves."""
        found = []
        for share, step in self._settings.rung_steps.items():
            beyond = [each for each in last if each.rung > share and not each.failed]
            values = self._ledger.values_at(step=step, metric=self._quality.name) if beyond else {}
            found += [
                replace(
                    each,
                    rung=share,
                    objectives={**each.objectives, self._quality.name: values[each.number]},
                )
                for each in beyond
                if each.number in values
            ]
        return found

    def _observation(self, trial: TrialRecord) -> Observation:
        """What a trial taught; failures of the machine teach nothing but that it is over."""
        failed = trial.state is TrialState.FAILED
        untrained = failed and trial.cause not in AGAINST_THE_CONFIGURATION
        quality = trial.objectives.get(self._quality.name)
        if failed or quality is None:
            failed, quality = True, self._quality.worst
        return Observation(
            trial.number,
            trial.configuration,
            {**costs(self._problem, trial), self._quality.name: quality},
            rung=trial.rung or 1.0,
            failed=failed,
            baseline=trial.baseline is not None,
            infeasible=untrained,
        )
