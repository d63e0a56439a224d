"""Lane states that a power failure has torn: their lanes begin anew, and everybody is told."""

from collections.abc import Collection

from autopeft.execution.states import CohortStates
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings


def drop_torn(
    ledger: Ledger, settings: TunerSettings, reporter: Reporter, cohorts: Collection[int]
) -> None:
    """Remove the torn states of some cohorts; each is an attempt of its trial that was lost.

    Args:
        ledger: The study; no trial is running.
        settings: Where its states lie.
        reporter: Whom to tell.
        cohorts: By number.
    """
    for cohort in sorted(cohorts):
        states = CohortStates(settings.states, cohort)
        for number, step in states.drop_torn().items():
            older = states.newest(number)
            then = f"goes on from step {older.step}" if older else "begins anew"
            message = f"its state of step {step} is torn, so it {then}"
            reporter.event(f"trial {number}: {message}")
            if not ledger.trial(number).state.final:
                ledger.lose(number, message)
