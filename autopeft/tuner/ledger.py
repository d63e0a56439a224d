"""One study in its store, under this coordinator's lease: every write carries the token."""

from collections.abc import Mapping, Sequence

from autopeft.study.records import (
    Measurement,
    NewTrial,
    Snapshot,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
)
from autopeft.study.store import Store


class Ledger:
    """The store's calls for one study; see `Store` for what each does.

    Args:
        store: Keeps the study.
        name: The study's name.
        token: Of the lease, held by the caller.
    """

    def __init__(self, store: Store, name: str, token: int) -> None:
        self._store, self.name, self._token = store, name, token

    def study(self) -> StudyRecord:
        """The study as it is now."""
        return self._store.study(self.name)

    def trials(self) -> list[TrialRecord]:
        """All trials by number."""
        return self._store.trials(self.name)

    def trial(self, number: int) -> TrialRecord:
        """One trial."""
        return self._store.trial(self.name, number)

    def values_at(self, *, step: int, metric: str) -> dict[int, float]:
        """Validation values at one step by trial number."""
        return self._store.values_at(self.name, step=step, metric=metric)

    def counts(self) -> dict[TrialState, int]:
        """Trials by state."""
        return self._store.counts(self.name)

    def last_snapshot(self) -> Snapshot | None:
        """The newest front."""
        return self._store.last_snapshot(self.name)

    def begin(self) -> list[int]:
        """Start a sitting: requeue what was lost; its numbers."""
        self.set_state(StudyState.RUNNING)
        return self._store.requeue_trials(self.name, self._token)

    def interrupt(self) -> None:
        """End a sitting before its time: what is in flight waits for the next one."""
        self._store.requeue_trials(self.name, self._token, cause="interrupted")
        self.set_state(StudyState.INTERRUPTED)

    def set_state(self, state: StudyState) -> None:
        """The study's state."""
        self._store.update_study(self.name, self._token, state=state)

    def spend(self, **spent: float) -> None:
        """Add to what the study has spent."""
        self._store.update_study(self.name, self._token, spent=spent)

    def renew(self, ttl_s: float) -> None:
        """Extend the lease."""
        self._store.renew(self.name, self._token, ttl_s)

    def add(self, trials: Sequence[NewTrial]) -> list[TrialRecord]:
        """Add waiting trials."""
        return self._store.add_trials(self.name, self._token, trials)

    def start(self, numbers: Sequence[int]) -> None:
        """Mark trials running."""
        self._store.start_trials(self.name, self._token, numbers)

    def record(
        self,
        number: int,
        *,
        measurements: Sequence[Measurement],
        optimizer_steps: int,
        objectives: Mapping[str, float | None] | None = None,
        rung: float | None = None,
    ) -> None:
        """Points of a trial's curve, and what it reached where it is at a rung."""
        self._store.record(
            self.name,
            self._token,
            number,
            measurements=measurements,
            objectives=objectives or {},
            rung=rung,
            optimizer_steps=optimizer_steps,
        )

    def finish(
        self,
        number: int,
        state: TrialState,
        *,
        cause: str | None = None,
        message: str | None = None,
        profile: Mapping[str, object] | None = None,
    ) -> TrialRecord:
        """Move a trial to a final state; the trial as it is then."""
        self._store.finish_trial(
            self.name, self._token, number, state, cause=cause, message=message, profile=profile
        )
        return self.trial(number)

    def add_snapshot(self, *, trials: int, front: Sequence[int], hypervolume: float) -> None:
        """Append a front."""
        self._store.add_snapshot(
            self.name, self._token, trials=trials, front=front, hypervolume=hypervolume
        )
