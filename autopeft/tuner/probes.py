"""Solo probes: what trials cost by themselves, measured once before their first rung.

What a probe finds is stored with its trial before the next one begins, so a resumed study measures
no trial twice. It never decides which pack a trial is in. A trial that breaks a cap on a measured
cost ends here as failed, cause "infeasible": it is never trained, counts within the budget (else a
cap that nothing keeps would be searched for ever), and is told to the searcher with what was
measured. Baselines are exempt from caps; the front marks those that break one.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.errors import TrialError
from autopeft.execution.base import Runner
from autopeft.searchers.base import Problem
from autopeft.study.records import TrialRecord, TrialState, TrialUpdate
from autopeft.tuner.costs import PROBE, measured_costs
from autopeft.tuner.failures import TRIES_OF_A_TRIAL, Failure
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.packs import PackTraining
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.watch import Watch

logger = logging.getLogger(__name__)

INFEASIBLE = "infeasible"


class Probing:
    """Probes the trials of one study.

    Args:
        ledger: The study.
        problem: Its objectives and limits.
        packs: Ends trials that fail; its first runner measures.
        watch: When to stop.
        reporter: Whom to tell.
    """

    def __init__(
        self,
        ledger: Ledger,
        problem: Problem,
        packs: PackTraining,
        watch: Watch,
        reporter: Reporter,
    ) -> None:
        self._ledger, self._problem = ledger, problem
        self._packs, self._watch, self._reporter = packs, watch, reporter

    def run(self, trials: Sequence[TrialRecord]) -> None:
        """Measure the trials that were not measured yet, and end those that break a cap.

        Raises:
            InterruptedStudyError: Asked to stop; what was measured is stored.
            AutopeftError: Several lone trials in a row failed with an error of the program.
        """
        waiting = [trial for trial in trials if not trial.state.final]
        for trial in waiting:
            if PROBE not in trial.profile:
                if self._watch.stopping():
                    raise self._watch.stopped()
                self._measure(trial)
            # Also of those that an earlier sitting measured: it may have ended before this.
            self._hold_to_caps(self._ledger.trial(trial.number))

    def _measure(self, trial: TrialRecord) -> None:
        self._packs.first.release()
        self._reporter.report("probing", [trial.number])
        if trial.state is TrialState.WAITING:
            self._ledger.start([trial.number], self._runner.identity)
        found = self._probed(trial)
        if isinstance(found, Failure):
            self._packs.fail(trial.number, found)
            return
        seconds = float(found.get("seconds", 0.0))
        self._ledger.spend(train_seconds=seconds, probe_seconds=seconds)
        profile = {**trial.profile, PROBE: found}
        names = {frame.name for frame in self._problem.frame}
        costs = {n: value for n, value in measured_costs(profile).items() if n in names}
        update = TrialUpdate(
            trial.number,
            objectives=costs,
            optimizer_steps=trial.optimizer_steps,
            profile=profile,
        )
        self._ledger.update([update])

    def _probed(self, trial: TrialRecord) -> Mapping[str, Any] | Failure:
        """What a trial costs by itself; tried again where the machine was at fault."""
        tries: Counter[str] = Counter()
        while True:
            try:
                return self._packs.patience.call(lambda: self._runner.probe(trial.configuration))
            except (TrialError, RuntimeError) as error:
                logger.warning("probing trial %s failed: %s", trial.number, error, exc_info=error)
                failure = Failure.of(error, self._runner.last_lines())
            tries[failure.cause] += 1
            if tries[failure.cause] >= TRIES_OF_A_TRIAL.get(failure.cause, 1):
                return failure

    @property
    def _runner(self) -> Runner:
        return self._packs.first.runner

    def _hold_to_caps(self, trial: TrialRecord) -> None:
        """End a trial that breaks a cap; baselines may."""
        if trial.state.final or trial.baseline is not None:
            return
        values = measured_costs(trial.profile)
        broken = [
            f"{limit.metric} {values[limit.metric]:.6g} is over the cap of {limit.bound:.6g}"
            for limit in self._problem.limits
            if limit.metric in values and not limit.keeps(values[limit.metric])
        ]
        if broken:
            if trial.state is TrialState.WAITING:
                self._ledger.start([trial.number], self._runner.identity)
            self._packs.fail(trial.number, Failure(INFEASIBLE, "; ".join(broken)))
