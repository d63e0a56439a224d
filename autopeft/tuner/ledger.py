"""One study in its store, under this coordinator's lease: every write carries the token."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from autopeft.errors import StudyHeldError
from autopeft.execution.base import LOST
from autopeft.study.ending import Interruption
from autopeft.study.records import (
    NewTrial,
    Snapshot,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
    TrialUpdate,
)
from autopeft.study.store import Store


class Ledger:
    """The store's calls for one study; see `Store` for what each does.

    Args:
        store: Keeps the study.
        name: The study's name.
        token: Of the lease, held by the caller.
        replicate: Of the study's seed; the search's is 0.
    """

    def __init__(self, store: Store, name: str, token: int, replicate: int = 0) -> None:
        self._store, self.name, self._token = store, name, token
        self._replicate = replicate

    @property
    def patience_s(self) -> float:
        """Seconds to wait for a place that cannot be written."""
        return self._store.patience_s

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
        self._store.update_study(
            self.name,
            self._token,
            state=StudyState.RUNNING,
            facts={"ended": None, "interrupted": None},  # those of the sitting before
        )
        return self._store.requeue_trials(self.name, self._token)

    def interrupt(self, why: Interruption) -> None:
        """End a sitting before its time: what is in flight waits for the next one."""
        self._store.requeue_trials(self.name, self._token, cause="interrupted", message=why.reason)
        self._store.update_study(
            self.name,
            self._token,
            state=StudyState.INTERRUPTED,
            facts={"interrupted": why.to_dict()},
        )

    def lose(self, number: int, message: str) -> None:
        """Note an attempt of a waiting trial that was lost before anything ran."""
        self.start([number], None)
        self.requeue(cause=LOST, numbers=[number], message=message)

    def requeue(
        self,
        *,
        cause: str,
        numbers: Sequence[int] | None = None,
        message: str | None = None,
        log: str | None = None,
    ) -> list[int]:
        """Have running trials wait, their attempts closed; their numbers."""
        return self._store.requeue_trials(
            self.name, self._token, cause=cause, numbers=numbers, message=message, log=log
        )

    def set_state(self, state: StudyState) -> None:
        """The study's state."""
        self._store.update_study(self.name, self._token, state=state)

    def spend(self, **spent: float) -> None:
        """Add to what the study has spent.

        Nothing where the lease has passed on: the next result says so, and must not be lost to
        this.
        """
        with suppress(StudyHeldError):
            self._store.update_study(self.name, self._token, spent=spent)

    def renew(self, ttl_s: float) -> None:
        """Extend the lease."""
        self._store.renew(self.name, self._token, ttl_s)

    def add(self, trials: Sequence[NewTrial]) -> list[TrialRecord]:
        """Add waiting trials."""
        return self._store.add_trials(self.name, self._token, trials)

    def start(self, numbers: Sequence[int], runner: Mapping[str, Any] | None) -> None:
        """Mark trials running, on a runner."""
        self._store.start_trials(self.name, self._token, numbers, runner=runner)

    def update(self, updates: Sequence[TrialUpdate]) -> None:
        """Record and end trials, all or none; what comes too late is kept apart.

        Raises:
            StudyHeldError: The lease has passed to another coordinator, which goes on without
                what is written here.
        """
        try:
            self._record(updates)
        except StudyHeldError:
            self._store.add_orphans(self.name, self._token, updates, replicate=self._replicate)
            raise

    def _record(self, updates: Sequence[TrialUpdate]) -> None:
        self._store.update_trials(self.name, self._token, updates)

    def note(self, **facts: object) -> None:
        """Keep facts with the study."""
        self._store.update_study(self.name, self._token, facts=facts)

    def add_snapshot(self, *, trials: int, front: Sequence[int], hypervolume: float) -> None:
        """Append a front."""
        self._store.add_snapshot(
            self.name, self._token, trials=trials, front=front, hypervolume=hypervolume
        )
