"""`autopeft.search`: create or resume a study and run it to its end.

What trains is imported once there is something to train: a study that is finished, or is not the
one that is stored, is told at once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.api.definitions import resolve_definition, stored_plain
from autopeft.api.leasing import leased, renewed
from autopeft.api.loading import open_existing, open_store
from autopeft.api.place import output_folder, storage_url
from autopeft.api.study import Study
from autopeft.errors import StudyMismatchError
from autopeft.study.definition import StudyDefinition, difference
from autopeft.study.progress import Listener, Progress, Silent, Stopper
from autopeft.study.records import NewStudy, StudyRecord, StudyState
from autopeft.study.sitting import AS_SAVED, NOT_STORED, Sitting
from autopeft.study.store import Store

if TYPE_CHECKING:
    from autopeft.api.preparation import Preparation
    from autopeft.execution.spare import Spare


def search(
    study: StudyDefinition | Path | str | None = None,
    *,
    storage: str | None = None,
    output_dir: Path | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
    stopper: Stopper | None = None,
    stop_after: float | None = None,
) -> Study:
    """Create or resume a study and run it until its budget is spent.

    A finished study comes back at once, unless its budget was raised.

    Args:
        study: A definition, a study file, or None for the embedded default.
        storage: URL of the database; made where it is missing.
        output_dir: Where artifacts go.
        name: Replaces the study's name.
        overrides: `key.path=value` texts that replace what the study says.
        listener: Watches the search.
        stopper: Asks for an early end.
        stop_after: Seconds after which this sitting ends, what it prepares counted in.

    Raises:
        InputError: Faults of the study, its model, data or space, all at once.
        StudyMismatchError: A study of that name with another definition, data or backbone.
        StudyHeldError: Another coordinator runs it.
        StudyTakenOverError: Another one has taken it over meanwhile.
        InterruptedStudyError: Stopped before the end; everything is saved.
        StorageError: The database cannot be used.
    """
    sitting = Sitting(stopper, stop_after_s=stop_after)
    definition = resolve_definition(study, name=name, overrides=overrides)
    folder = output_folder(definition.study.name, output_dir)
    store = _Coordinator(definition, storage, folder, listener or Silent(), sitting).run()
    url = storage_url(storage)
    return Study(store, definition.study.name, output_dir=folder, storage=url)


class _Coordinator:
    """One run of a study's coordinator, from load to release."""

    def __init__(
        self,
        definition: StudyDefinition,
        storage: str | None,
        folder: Path,
        listener: Listener,
        sitting: Sitting,
    ) -> None:
        self._definition, self._storage, self._folder = definition, storage, folder
        self._listener, self._sitting, self._stopper = listener, sitting, sitting.stopper
        self._name = definition.study.name
        self._spare: Spare | None = None

    def run(self) -> Store:
        """Search; the store. The database is made only once all checks have passed."""
        try:
            return self._run()
        finally:
            if self._spare is not None:
                self._spare.close()

    def _run(self) -> Store:
        store = open_existing(self._storage, stopper=self._stopper)
        existing = self._existing(store) if store is not None else None
        if store is None or existing is None:
            with self._sitting.preparing(self._name, NOT_STORED):
                prepared, created = self._new_study(store)
            store = store or open_store(self._storage, create=True, stopper=self._stopper)
            with suppress(StudyMismatchError):  # made meanwhile: the lease tells by whom
                store.create_study(created)
            with leased(store, self._name) as token, self._paying(store, token):
                self._search(prepared, store, token)
        elif not self._is_finished(existing):
            with leased(store, self._name) as token, self._paying(store, token):
                with (
                    renewed(store, self._name, token),
                    self._sitting.preparing(self._name, AS_SAVED),
                ):
                    prepared = self._prepare(store)
                self._search(prepared, store, token)
        return store

    def _new_study(self, store: Store | None) -> "tuple[Preparation, NewStudy]":
        """What a study is made from that is not stored yet, and what is stored of it."""
        from autopeft.api.warm_start import sources

        earlier = sources(self._definition, store)
        prepared = self._prepare(store)
        known = prepared.warm_start(earlier, self._listener)
        if self._spare is not None:
            self._spare.settle()
        calibration = prepared.calibrate(self._listener, self._sitting)
        probes = prepared.probe_space(calibration, self._listener, self._sitting)
        return prepared, prepared.new_study(calibration, known, probes)

    def _paying(self, store: Store, token: int) -> AbstractContextManager[None]:
        """Preparation, before or within, is paid by the study."""
        from autopeft.tuner.ledger import Ledger

        return self._sitting.paying(Ledger(store, self._name, token).spend)

    def _search(self, prepared: "Preparation", store: Store, token: int) -> None:
        self._existing(store)
        prepared.check(store.study(self._name), self._listener)
        prepared.keep_importance(store)
        plain = self._definition.to_plain()
        store.update_study(self._name, token, definition=plain)
        tuner = prepared.tuner(store, token, listener=self._listener, sitting=self._sitting)
        if self._definition.execution.executor != "in-process":
            prepared.release()
        tuner.run()

    def _existing(self, store: Store) -> StudyRecord | None:
        """The stored study of that name, where it is the same study."""
        record = next((r for r in store.studies() if r.name == self._name), None)
        if record is not None:
            faults = difference(stored_plain(record), self._definition.to_plain())
            if faults:
                raise StudyMismatchError(faults)
        return record

    def _is_finished(self, record: StudyRecord) -> bool:
        return (
            record.state is StudyState.FINISHED
            and stored_plain(record)["budget"] == self._definition.to_plain()["budget"]
        )

    def _prepare(self, store: Store | None) -> "Preparation":
        self._listener.on_progress(Progress(self._name, "loading", 0, 0))
        if self._definition.execution.executor == "local":
            from autopeft.execution.spare import Spare

            self._spare = Spare(self._folder)
        from autopeft.api.preparation import Preparation  # while the spare runner imports as much

        return Preparation(
            self._definition,
            self._folder,
            self._listener,
            store=store,
            sitting=self._sitting,
            spare=self._spare,
        )
