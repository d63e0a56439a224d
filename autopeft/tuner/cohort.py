"""A cohort through its rungs: packs are formed, trained, and judged together.

The trials that one ask proposed are a cohort. At every rung those that are left are grouped anew
into packs; when all packs have arrived, the rung's decisions are taken over all of them at once.
What is known of a cohort is in the store and in its lane states, so a kill at any moment leaves a
cohort that goes on with the same packs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from autopeft.execution.states import CohortStates
from autopeft.searchers import front as fronts
from autopeft.searchers.base import Problem
from autopeft.searchers.rungs import noise_margin, stopped_at_rung
from autopeft.study.records import TrialRecord, TrialState, TrialUpdate
from autopeft.tuner.costs import costs
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.packing import grouped
from autopeft.tuner.packs import PackTraining
from autopeft.tuner.probes import Probing
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings

PLAIN_MARGIN = 0.05
"""Utility below which qualities that are no share of correct answers are not told apart."""


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

    def run(self, cohort: int) -> None:
        """Train a cohort until all its trials have ended.

        Raises:
            InterruptedStudyError: Asked to stop; the lanes are saved.
            AutopeftError: Several lone trials in a row failed with an error of the program.
        """
        if self._probing is not None:
            self._probing.run(self._trials(cohort))
        self._packs.expect([trial.number for trial in self._trials(cohort)])
        previous = 0.0
        for share in self._settings.rung_steps:
            for pack in self._packs_to(cohort, previous, share):
                self._packs.run(pack, share)
            if share < 1.0 and self._settings.stops:
                self._decide(cohort, share)
            previous = share
        CohortStates(self._settings.states, cohort).clear()

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
        for pack in grouped(started, self._problem.anatomy, size=self._packs.size):
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
        step = self._settings.rung_steps[share]
        values = self._ledger.values_at(step=step, metric=self._quality.name)
        measured: dict[int, tuple[float, ...]] = {}
        for trial in self._ledger.trials():
            if trial.number in values:
                known = costs(self._problem, trial)
                objectives = {**known, self._quality.name: values[trial.number]}
                measured[trial.number] = fronts.utilities(self._problem.frame, objectives)
        candidates = [t.number for t in arrived if t.baseline is None and t.number in measured]
        return stopped_at_rung(candidates, measured, margin=self._margin(measured))

    def _margin(self, measured: Mapping[int, tuple[float, ...]]) -> float:
        if not measured or not self._settings.accuracy_like:
            return PLAIN_MARGIN
        worst, best = self._quality.worst, self._quality.best
        top = worst + max(point[0] for point in measured.values()) * (best - worst)
        return noise_margin(top, self._problem.n_validation, worst=worst, best=best)


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
