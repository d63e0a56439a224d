"""The Store over a database: `SqlStore`, and `open_store`, which gives one.

What each call means is written in `autopeft.study.store.Store`; here every call becomes one
transaction, and every error of the database one `StorageError`.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autopeft.errors import Fault, StorageError, StudyMismatchError
from autopeft.study.confirmation import ConfirmationRun, Opening
from autopeft.study.progress import Stopper
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
from storage import confirmations, engine, importances, lease, records, schema, summaries
from storage import snapshots as snapshot_rows
from storage import trials as trial_rows
from storage.faults import storage_errors
from storage.filesystem import check_file
from storage.lookup import find_study, find_trial, no_study
from storage.models import StudyRow
from storage.patience import SLICE_S, Patience, commit, patient
from storage.place import Place, parse_place


def open_store(
    url: str,
    *,
    create: bool = False,
    read_only: bool = False,
    stopper: Stopper | None = None,
) -> "SqlStore":
    """The store at a URL; see `storage.place` for the URLs.

    Args:
        url: Where the database is.
        create: Make the file and the tables where they are missing.
        read_only: Open for reading alone: fit while a search runs, and creates nothing.
        stopper: Given by who runs a search: once open, the store waits for a database that cannot
            be used for a while (`storage.patience`), but not long once a stop is asked for.

    Raises:
        StorageError: The database is missing, cannot be used, or is none of autopeft's.
        StorageVersionError: Its schema is older or newer than this release's.
    """
    if create and read_only:
        raise ValueError("a store that is only read cannot be created")
    place = parse_place(url)
    if place.path is not None:
        check_file(place.path, create=create, writable=not read_only)
    if create:
        with storage_errors(place):
            schema.create(place)
    patience, sliced = Patience(place, stopper), place
    if stopper is not None:
        sliced = replace(place, busy_timeout_s=min(SLICE_S, place.busy_timeout_s))
    reader = engine.reader(sliced)
    writer = None if read_only else engine.writer(sliced)
    if place.path is None:
        patience.guard(engine.Links(each for each in (reader, writer) if each is not None))
    store = SqlStore(place, reader, writer, patience)
    try:
        with storage_errors(place), _unsliced(place, writer or reader, sliced) as first:
            schema.check(first, place)
    except BaseException:
        store.close()
        raise
    return store


@contextmanager
def _unsliced(place: Place, own: Engine, sliced: Place) -> Iterator[Engine]:
    """An engine that waits for locks as long as the place says: opening is tried once."""
    if sliced == place:
        yield own
        return
    first = engine.reader(place)
    try:
        yield first
    finally:
        first.dispose()


@patient
class SqlStore:
    """A `Store` over SQLite or PostgreSQL; open it with `open_store`.

    Safe to share between threads; another process opens its own. Use it as a context manager, or
    `close` it. Without a writer every writing call raises `StorageError`.

    Attributes:
        place: Where the database is; `str(place)` is safe to show.
        patience: How long its calls wait for a database that cannot be used.
    """

    def __init__(
        self, place: Place, reader: Engine, writer: Engine | None, patience: Patience
    ) -> None:
        self.place, self.patience = place, patience
        self._reader = reader
        self._writer = writer
        # Of a store that nobody closes, no connection is left open either.
        weakref.finalize(self, _dispose, reader, writer)

    def __enter__(self) -> "SqlStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def patience_s(self) -> float:
        """See `Store.patience_s`."""
        return self.place.patience_s

    def close(self) -> None:
        """Give back the connections."""
        _dispose(self._reader, self._writer)

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with storage_errors(self.place), Session(self._reader) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        if self._writer is None:
            raise StorageError(f"{self.place}: it was opened for reading only")
        with storage_errors(self.place), Session(self._writer) as session:
            yield session
            commit(session, self._writer, self.place, self.patience)

    # -- studies ------------------------------------------------------------------------------

    def create_study(self, study: NewStudy) -> StudyRecord:
        """Create it; an existing name raises `StudyMismatchError`."""
        with self._writing() as session:
            row = records.study_row(study)
            session.add(row)
            try:
                session.flush()
            except IntegrityError as error:
                raise StudyMismatchError(
                    Fault(
                        where=str(self.place),
                        key="study",
                        given=study.name,
                        allowed="a name that no study has",
                        hint="resume that study, or give another --name",
                    )
                ) from error
            return records.study_record(row)

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._reading() as session:
            rows = session.scalars(select(StudyRow).order_by(StudyRow.id))
            return [records.study_record(row) for row in rows]

    def names(self) -> list[str]:
        """The names of all studies, the one that changed last first; reads nothing else."""
        with self._reading() as session:
            latest = (StudyRow.updated_at.desc(), StudyRow.id.desc())
            return list(session.scalars(select(StudyRow.name).order_by(*latest)))

    def study(self, name: str) -> StudyRecord:
        """One study."""
        with self._reading() as session:
            row = session.scalars(select(StudyRow).where(StudyRow.name == name)).one_or_none()
            if row is None:
                raise no_study(session, name)
            return records.study_record(row)

    def summaries(self) -> list[StudySummary]:
        """All studies at a glance, oldest first; a handful of statements, however many."""
        with self._reading() as session:
            return summaries.read(session)

    def summary(self, name: str) -> StudySummary:
        """One study at a glance."""
        with self._reading() as session:
            return summaries.read(session, name)[0]

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
        """Change what is given; `spent` values are added, `facts` replaced key by key."""
        with self._writing() as session:
            row = session.get_one(StudyRow, lease.guard(session, name, token).id)
            if state is not None:
                row.state = state.value
            if spent is not None:
                row.spent = records.added(row.spent, spent)
            if definition is not None:
                row.definition = dict(definition)
            if facts is not None:
                row.facts = {**row.facts, **facts}

    def request_stop(self, name: str, requested: bool = True) -> None:
        """Ask the running coordinator to stop after its step; needs no lease."""
        with self._writing() as session:
            row = session.get_one(StudyRow, find_study(session, name).id)
            row.stop_requested = requested
            row.updated_at = records.now()

    def delete_study(self, name: str) -> None:
        """Remove a study with all that belongs to it; a held study raises `StudyHeldError`."""
        with self._writing() as session:
            lease.check_free(session, name)
            session.execute(delete(StudyRow).where(StudyRow.name == name))

    # -- the lease ----------------------------------------------------------------------------

    def claim(self, name: str, holder: Holder, ttl_s: float) -> int:
        """Take the study's lease and return its fencing token."""
        with self._writing() as session:
            return lease.claim(session, name, holder, ttl_s)

    def renew(self, name: str, token: int, ttl_s: float) -> None:
        """Extend the lease."""
        with self._writing() as session:
            lease.renew(session, name, token, ttl_s)

    def release(self, name: str, token: int) -> None:
        """Give the lease back; a token that no longer holds is ignored."""
        with self._writing() as session:
            lease.release(session, name, token)

    def holder(self, name: str) -> Holder | None:
        """Who runs the study now: None where its lease is free, has run out, or its holder died.

        A study whose state is "running" and which nobody holds was killed.
        """
        with self._reading() as session:
            return lease.holder_of(session, name)

    # -- trials -------------------------------------------------------------------------------

    def add_trials(self, name: str, token: int, trials: Sequence[NewTrial]) -> list[TrialRecord]:
        """Add waiting trials with the next free numbers, all or none."""
        with self._writing() as session:
            return trial_rows.add(session, lease.guard(session, name, token), trials)

    def start_trials(
        self,
        name: str,
        token: int,
        numbers: Sequence[int],
        *,
        runner: Mapping[str, Any] | None = None,
    ) -> None:
        """Mark them running and open an attempt for each."""
        with self._writing() as session:
            trial_rows.start(session, lease.guard(session, name, token), numbers, runner)

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
        """Append to a running trial's curve and set its objectives."""
        with self._writing() as session:
            trial_rows.record(
                session,
                lease.guard(session, name, token),
                number,
                measurements=measurements,
                objectives=objectives,
                rung=rung,
                optimizer_steps=optimizer_steps,
            )

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
        with self._writing() as session:
            trial_rows.finish(
                session,
                lease.guard(session, name, token),
                number,
                state,
                cause=cause,
                message=message,
                profile=profile,
            )

    def update_trials(self, name: str, token: int, updates: Sequence[TrialUpdate]) -> None:
        """Record and end several trials at once, all or none."""
        with self._writing() as session:
            trial_rows.update(session, lease.guard(session, name, token), updates)

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
        """Set running trials back to waiting and close their attempts; their numbers."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            return trial_rows.requeue(
                session, study, cause, numbers=numbers, message=message, log=log
            )

    def add_orphans(
        self, name: str, token: int, updates: Sequence[TrialUpdate], *, replicate: int = 0
    ) -> None:
        """Keep what a coordinator found that had lost its lease; needs none."""
        with self._writing() as session:
            study = find_study(session, name)
            trial_rows.add_orphans(session, study, token, updates, replicate=replicate)

    def orphans(self, name: str) -> list[dict[str, Any]]:
        """What came too late, oldest first."""
        with self._reading() as session:
            return trial_rows.orphans(session, find_study(session, name))

    def trials(self, name: str) -> list[TrialRecord]:
        """All trials by number."""
        with self._reading() as session:
            return trial_rows.read(session, find_study(session, name))

    def trial(self, name: str, number: int) -> TrialRecord:
        """One trial."""
        with self._reading() as session:
            study = find_study(session, name)
            return records.trial_record(find_trial(session, study, number), study)

    def curve(self, name: str, number: int) -> list[Measurement]:
        """A trial's measurements by step, metric and split."""
        with self._reading() as session:
            return trial_rows.curve(session, find_study(session, name), number)

    def values_at(self, name: str, *, step: int, metric: str) -> dict[int, float]:
        """The validation values of a metric at one step, by trial number."""
        with self._reading() as session:
            return trial_rows.values_at(session, find_study(session, name), step, metric)

    def attempts(self, name: str, number: int) -> list[dict[str, Any]]:
        """A trial's attempts, oldest first."""
        with self._reading() as session:
            return trial_rows.attempts(session, find_study(session, name), number)

    def counts(self, name: str) -> dict[TrialState, int]:
        """How many trials are in each state, baselines included; every state is a key.

        Cheap: reads an index and no trial.
        """
        with self._reading() as session:
            return trial_rows.counts(session, find_study(session, name))

    # -- the front ----------------------------------------------------------------------------

    def add_snapshot(
        self, name: str, token: int, *, trials: int, front: Sequence[int], hypervolume: float
    ) -> Snapshot:
        """Append a snapshot with the next index."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            return snapshot_rows.add(session, study, trials, front, hypervolume)

    def snapshots(self, name: str) -> list[Snapshot]:
        """All snapshots by index."""
        with self._reading() as session:
            return snapshot_rows.read(session, find_study(session, name))

    def last_snapshot(self, name: str) -> Snapshot | None:
        """The newest snapshot, or None before the first; reads one row."""
        with self._reading() as session:
            return snapshot_rows.last(session, find_study(session, name))

    # -- confirmation -------------------------------------------------------------------------

    def add_confirmations(
        self, name: str, token: int, trials: Sequence[int], replicates: Sequence[int]
    ) -> None:
        """Have every trial trained once more with every replicate; what is there stays."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            confirmations.add(session, study, trials, replicates)

    def start_confirmations(
        self,
        name: str,
        token: int,
        replicate: int,
        trials: Sequence[int],
        *,
        runner: Mapping[str, Any] | None = None,
    ) -> None:
        """Mark runs of one replicate running and open an attempt for each."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            confirmations.start(session, study, replicate, trials, runner)

    def update_confirmations(
        self, name: str, token: int, replicate: int, updates: Sequence[TrialUpdate]
    ) -> None:
        """Record and end runs of one replicate, all or none."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            confirmations.update(session, study, replicate, updates)

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
        """Set running runs (of these trials) back to waiting; the numbers of their trials."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            return confirmations.requeue(
                session, study, trials, cause=cause, message=message, log=log
            )

    def confirmation_attempts(self, name: str, number: int) -> list[dict[str, Any]]:
        """The attempts of a trial's runs, by seed, oldest first."""
        with self._reading() as session:
            return confirmations.attempts(session, find_study(session, name), number)

    def confirmations(self, name: str) -> list[ConfirmationRun]:
        """All runs by trial and replicate."""
        with self._reading() as session:
            return confirmations.read(session, find_study(session, name))

    def add_opening(
        self,
        name: str,
        token: int,
        *,
        by: str,
        trials: Sequence[int],
        replicates: Sequence[int],
    ) -> Opening:
        """Record that the test split is about to be opened."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            return confirmations.open_test(session, study, by, trials, replicates)

    def openings(self, name: str) -> list[Opening]:
        """All openings of the test split, oldest first."""
        with self._reading() as session:
            return confirmations.openings(session, find_study(session, name))

    def keep_test(
        self,
        name: str,
        token: int,
        replicate: int,
        values: Mapping[int, Mapping[str, float | None]],
    ) -> None:
        """Store test metrics of one replicate's runs by trial; values that are there stay."""
        with self._writing() as session:
            study = lease.guard(session, name, token)
            confirmations.keep_test(session, study, replicate, values)

    # -- importance ---------------------------------------------------------------------------

    def keep_importance(self, record: ImportanceRecord) -> None:
        """Store a measured map for all studies; one of the same key is replaced."""
        with self._writing() as session:
            importances.keep(session, record)

    def importance(self, key: str) -> ImportanceRecord | None:
        """The map of that key, or None."""
        with self._reading() as session:
            return importances.find(session, key)

    def importances(self, *, backbone: str, data: str) -> list[ImportanceRecord]:
        """All maps of a backbone and data, newest first, without blocks and single weights."""
        with self._reading() as session:
            return importances.read(session, backbone, data)


def _dispose(reader: Engine, writer: Engine | None) -> None:
    reader.dispose()
    if writer is not None:
        writer.dispose()
