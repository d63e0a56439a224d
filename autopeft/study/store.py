"""The Store protocol: what the tuner needs from a database, and no more."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autopeft.study.confirmation import ConfirmationRun, Opening
from autopeft.study.records import (
    Holder,
    ImportanceRecord,
    Measurement,
    NewStudy,
    NewTrial,
    Snapshot,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
    TrialUpdate,
)
from autopeft.study.summary import StudySummary


class Store(Protocol):
    """Keeps studies. Each call is one transaction; values given out are never changed later.

    Reading calls raise `NotFoundError` for an unknown study or trial (the message lists the
    studies there are, nearest name first). Every call raises `StorageError` where the database
    cannot be used. Writing calls that take a `token` raise `StudyHeldError` when the lease has
    passed to another coordinator, and then change nothing.
    """

    @property
    def patience_s(self) -> float:
        """Seconds that a search waits for a place that cannot be used, this one or another."""

    # -- studies ------------------------------------------------------------------------------

    def create_study(self, study: NewStudy) -> StudyRecord:
        """Create it; an existing name raises `StudyMismatchError`."""

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""

    def names(self) -> list[str]:
        """The names of all studies, the one that changed last first; reads nothing else."""

    def study(self, name: str) -> StudyRecord:
        """One study."""

    def summaries(self) -> list[StudySummary]:
        """All studies at a glance, oldest first; its cost hardly grows with their trials."""

    def summary(self, name: str) -> StudySummary:
        """One study at a glance."""

    def update_study(
        self,
        name: str,
        token: int,
        *,
        state: StudyState | None = None,
        spent: Mapping[str, float] | None = None,
        definition: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Change what is given.

        `spent` values are added to what is stored; of `facts`, keys that are named are replaced
        and all others stay.
        """

    def request_stop(self, name: str, requested: bool = True) -> None:
        """Ask the running coordinator to stop after its step; needs no lease."""

    def delete_study(self, name: str) -> None:
        """Remove a study with all that belongs to it; a held study raises `StudyHeldError`."""

    # -- the lease ----------------------------------------------------------------------------

    def claim(self, name: str, holder: Holder, ttl_s: float) -> int:
        """Take the study's lease and return its fencing token.

        Taken when free, run out, or held by a process of this host that no longer lives;
        otherwise `StudyHeldError` names the holder and when the lease runs out.
        """

    def renew(self, name: str, token: int, ttl_s: float) -> None:
        """Extend the lease."""

    def holder(self, name: str) -> Holder | None:
        """Who holds the lease; None where it is free, run out, or its holder has died."""

    def release(self, name: str, token: int) -> None:
        """Give the lease back; a token that no longer holds is ignored."""

    # -- trials -------------------------------------------------------------------------------

    def add_trials(self, name: str, token: int, trials: Sequence[NewTrial]) -> list[TrialRecord]:
        """Add waiting trials with the next free numbers, all or none."""

    def start_trials(
        self,
        name: str,
        token: int,
        numbers: Sequence[int],
        *,
        runner: Mapping[str, Any] | None = None,
    ) -> None:
        """Mark them running and open an attempt for each.

        `runner` says where: `{"pid", "host", "device"}`.
        """

    def record(
        self,
        name: str,
        token: int,
        number: int,
        *,
        measurements: Sequence[Measurement],
        objectives: Mapping[str, float | None],
        rung: float | None,
        optimizer_steps: int,
    ) -> None:
        """Append to a running trial's curve and set its objectives.

        Empty objectives and a rung of None keep what is stored.

        Measurements of the same (step, metric, split) are replaced, so that a repeated attempt
        leaves one curve.
        """

    def finish_trial(
        self,
        name: str,
        token: int,
        number: int,
        state: TrialState,
        *,
        cause: str | None = None,
        message: str | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Move a trial to a final state and close its attempt; a final trial stays as it is."""

    def update_trials(self, name: str, token: int, updates: Sequence[TrialUpdate]) -> None:
        """Record and end several trials at once, all or none: what a pack or a rung found.

        For each trial, what `record` and `finish_trial` would do, in this order; a trial that is
        final already can no longer be measured, and stays as it is where it is only ended.
        """

    def requeue_trials(
        self,
        name: str,
        token: int,
        *,
        cause: str = "lost",
        numbers: Sequence[int] | None = None,
        message: str | None = None,
        log: str | None = None,
    ) -> list[int]:
        """Set running trials (all, or of these numbers) back to waiting; their numbers.

        Their open attempts are closed with the cause: `lost` where a coordinator or a runner died,
        `interrupted` where it was asked to stop, `out-of-memory`, `timeout` or `error` where they
        are to be tried again; and with a line about it and the runner's last log lines.
        """

    def add_orphans(
        self, name: str, token: int, updates: Sequence[TrialUpdate], *, replicate: int = 0
    ) -> None:
        """Keep what a coordinator found whose lease had passed on; needs no lease.

        It changes no trial: whoever holds the lease trains what was lost. `replicate` is that of
        a confirmation's runs.
        """

    def orphans(self, name: str) -> list[dict[str, Any]]:
        """What came too late, oldest first.

        Each is `{"trial", "token", "at", "content"}`, the content a `TrialUpdate` as plain JSON
        with its `replicate`.
        """

    def trials(self, name: str) -> list[TrialRecord]:
        """All trials by number."""

    def trial(self, name: str, number: int) -> TrialRecord:
        """One trial."""

    def curve(self, name: str, number: int) -> list[Measurement]:
        """A trial's measurements by step, metric and split."""

    def values_at(self, name: str, *, step: int, metric: str) -> dict[int, float]:
        """The validation values of a metric at one step, by trial number; None is left out."""

    def attempts(self, name: str, number: int) -> list[dict[str, Any]]:
        """A trial's attempts, oldest first.

        Each is `{"attempt", "started_at", "finished_at", "cause", "message", "runner", "log"}`:
        `runner` as it was given to `start_trials`, `log` the runner's last lines.
        """

    def counts(self, name: str) -> dict[TrialState, int]:
        """How many trials are in each state, zeros included."""

    # -- the front ----------------------------------------------------------------------------

    def add_snapshot(
        self, name: str, token: int, *, trials: int, front: Sequence[int], hypervolume: float
    ) -> Snapshot:
        """Append a snapshot with the next index."""

    def snapshots(self, name: str) -> list[Snapshot]:
        """All snapshots by index."""

    def last_snapshot(self, name: str) -> Snapshot | None:
        """The newest snapshot, or None."""

    # -- confirmation -------------------------------------------------------------------------

    def add_confirmations(
        self, name: str, token: int, trials: Sequence[int], replicates: Sequence[int]
    ) -> None:
        """Have every trial trained once more with every replicate.

        What is there stays, but runs that the machine failed (every cause but `diverged`) wait
        again.
        """

    def start_confirmations(
        self,
        name: str,
        token: int,
        replicate: int,
        trials: Sequence[int],
        *,
        runner: Mapping[str, Any] | None = None,
    ) -> None:
        """Mark runs of one replicate running and open an attempt for each; see `start_trials`."""

    def update_confirmations(
        self, name: str, token: int, replicate: int, updates: Sequence[TrialUpdate]
    ) -> None:
        """Record and end runs of one replicate, all or none; a run that has ended stays as it is.

        Of the measurements, the validation metrics at a rung are kept as the run's values.
        """

    def requeue_confirmations(
        self,
        name: str,
        token: int,
        trials: Sequence[int] | None = None,
        *,
        cause: str = "lost",
        message: str | None = None,
        log: str | None = None,
    ) -> list[int]:
        """Set running runs (of these trials) back to waiting; the numbers of their trials.

        Their open attempts are closed as those of `requeue_trials` are.
        """

    def confirmation_attempts(self, name: str, number: int) -> list[dict[str, Any]]:
        """The attempts of a trial's runs, by seed, oldest first.

        Each is one of `attempts` with its `seed`.
        """

    def confirmations(self, name: str) -> list[ConfirmationRun]:
        """All runs by trial and replicate."""

    def add_opening(
        self,
        name: str,
        token: int,
        *,
        by: str,
        trials: Sequence[int],
        replicates: Sequence[int],
    ) -> Opening:
        """Record that the test split is about to be opened; `again` where it was before."""

    def openings(self, name: str) -> list[Opening]:
        """All openings of the test split, oldest first."""

    def keep_test(
        self,
        name: str,
        token: int,
        replicate: int,
        values: Mapping[int, Mapping[str, float | None]],
    ) -> None:
        """Store test metrics of one replicate's runs by trial, all or none.

        Values that are there stay: what was seen once is what is told. A run that no opening
        covers raises ValueError.
        """

    # -- importance ---------------------------------------------------------------------------

    def keep_importance(self, record: ImportanceRecord) -> None:
        """Store a measured map for all studies; one of the same key is replaced."""

    def importance(self, key: str) -> ImportanceRecord | None:
        """The map of that key, or None."""

    def importances(self, *, backbone: str, data: str) -> list[ImportanceRecord]:
        """All maps of a backbone and data by their fingerprints, newest first.

        Their blocks and single weights are left out (`fine` is None).
        """

    def close(self) -> None:
        """Give back the connections."""
