"""A cohort through its rungs: packs are formed, trained, and judged together.

The trials that one ask proposed are a cohort. At every rung those that are left are grouped anew
into packs; when all packs have arrived, the rung's decisions are taken over all of them at once.
What is known of a cohort is in the store and in its lane states, so a kill at any moment leaves a
cohort that goes on with the same packs.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from autopeft.execution.states import CohortStates
from autopeft.searchers import front as fronts
from autopeft.searchers.base import Problem
from autopeft.searchers.evidence import RungValues, Vector, readings
from autopeft.searchers.rungs import stopped_at_rung
from autopeft.study.records import TrialRecord, TrialState, TrialUpdate
from autopeft.tuner.costs import costs
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.packing import grouped
from autopeft.tuner.packs import PackTraining
from autopeft.tuner.probes import Probing
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings

LOSS = "loss"
"""What every task measures beside its quality."""


class CohortTraining:
    """Takes cohorts of one study through the rungs.

    Args:
        ledger: The study.
        problem: Its objectives and its backbone's anatomy.
        settings: Its rungs.
        packs: Trains one pack to one rung.
        reporter: Whom to tell.
        probing: Measures what trials cost by themselves; None where the study asks for nothing.
    """

    def __init__(
        self,
        ledger: Ledger,
        problem: Problem,
        settings: TunerSettings,
        packs: PackTraining,
        reporter: Reporter,
        probing: Probing | None = None,
    ) -> None:
        self._ledger, self._problem, self._settings = ledger, problem, settings
        self._packs, self._reporter, self._probing = packs, reporter, probing
        self._quality = problem.frame[0]

    def run(self, cohort: int) -> bool:
        """Train a cohort until all its trials have ended; False where time was over before.

        Raises:
            InterruptedStudyError: Asked to stop; the lanes are saved.
            AutopeftError: Several lone trials in a row failed with an error of the program.
        """
        if self._probing is not None:
            self._probing.run(self._trials(cohort))
        self._packs.expect([trial.number for trial in self._trials(cohort)])
        previous = 0.0
        for share in self._settings.rung_steps:
            if not self._packs.run(self._packs_to(cohort, previous, share), share):
                return False
            if share < 1.0 and self._settings.stops:
                self._decide(cohort, share)
            previous = share
        CohortStates(self._settings.states, cohort).clear()
        return True

    def _trials(self, cohort: int) -> list[TrialRecord]:
        return [trial for trial in self._ledger.trials() if trial.pack == cohort]

    def _packs_to(self, cohort: int, previous: float, share: float) -> list[list[TrialRecord]]:
        """The packs that are still to be trained to a rung.

        Formed of all trials that set out for it, then without those that have arrived or failed,
        so that a resumed rung has the packs that it had. Lanes that a kill left at different steps
        (between the halves of a pack) go on apart.
        """
        started = [t for t in self._trials(cohort) if _sets_out(t, previous, share)]
        packs = []
        size = self._packs.size(len(started))
        for pack in grouped(started, self._problem.anatomy, size=size):
            left = [t for t in pack if not t.state.final and (t.rung or 0.0) < share]
            packs += self._by_step(cohort, left)
        return packs

    def _by_step(self, cohort: int, trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
        states = CohortStates(self._settings.states, cohort)
        at: dict[int, list[TrialRecord]] = defaultdict(list)
        for trial in trials:
            saved = states.newest(trial.number)
            at[saved.step if saved else 0].append(trial)
        return [at[step] for step in sorted(at, reverse=True)]

    # -- at a rung ----------------------------------------------------------------------------

    def _decide(self, cohort: int, share: float) -> None:
        """End the trials that a rung ends, all in one write."""
        arrived = [t for t in self._trials(cohort) if not t.state.final and t.rung == share]
        stopped = sorted(self._stopped(arrived, share))
        if not stopped:
            return
        self._ledger.update([TrialUpdate(n, state=TrialState.STOPPED) for n in stopped])
        for number in stopped:
            self._reporter.ended(self._ledger.trial(number))

    def _stopped(self, arrived: Sequence[TrialRecord], share: float) -> set[int]:
        """Trials that a rung ends, by all that was measured there so far; never baselines."""
        step, frame = self._settings.rung_steps[share], self._problem.frame
        at_rung = self._ledger.values_at(step=step, metric=self._quality.name)
        measured = [trial for trial in self._ledger.trials() if trial.number in at_rung]
        spent = [fronts.utilities(frame[1:], costs(self._problem, trial)) for trial in measured]
        return stopped_at_rung(
            [trial.number for trial in arrived if trial.baseline is None],
            [trial.number for trial in measured],
            np.array(spent, dtype=np.float64).reshape(len(measured), len(frame) - 1),
            readings(self._values(measured, share)),
        )

    def _values(self, trials: Sequence[TrialRecord], share: float) -> RungValues:
        """What trials measured at a rung, and at the rung before it or, at the first, after it.

        Of the rung after it only earlier cohorts count: of this one, more would be known when a
        killed search decides once more than when it decided first.
        """
        shares = list(self._settings.rung_steps)
        place, cohort = shares.index(share), max((trial.pack for trial in trials), default=0)
        beside = shares[place - 1] if place else shares[1]
        told = [trial for trial in trials if place or trial.pack < cohort]
        name, sign = self._quality.name, 1.0 if self._quality.goal == "max" else -1.0
        counted = self._settings.accuracy_like
        return RungValues(
            quality=sign * self._column(name, share, trials, trials),
            loss=self._column(LOSS, share, trials, trials),
            quality_beside=sign * self._column(name, beside, trials, told),
            loss_beside=self._column(LOSS, beside, trials, told),
            n_examples=self._problem.n_validation if counted else None,
        )

    def _column(
        self, metric: str, share: float, trials: Sequence[TrialRecord], told: Sequence[TrialRecord]
    ) -> Vector:
        """A metric at a rung, one entry per trial; nan where it is unknown or not to be told."""
        values = self._ledger.values_at(step=self._settings.rung_steps[share], metric=metric)
        known = {trial.number: values.get(trial.number, np.nan) for trial in told}
        return np.array([known.get(trial.number, np.nan) for trial in trials], dtype=np.float64)


def _sets_out(trial: TrialRecord, previous: float, share: float) -> bool:
    """Whether a trial had not ended before a rung's packs were formed.

    One that failed on its way (out of memory, an error) has measured the rung before it; one that
    was stopped or had diverged at a rung has measured that one. One that its probe ended counts
    for the first rung's packs, so that no measured second decides who is in which.
    """
    reached = trial.rung or 0.0
    on_its_way = trial.state is TrialState.FAILED and trial.cause != "diverged"
    if not trial.state.final or on_its_way:
        return reached >= previous
    return reached >= share
