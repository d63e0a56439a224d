"""`autopeft.search`: create or resume a study and run it to its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopeft.api import problem as problems
from autopeft.api.loading import open_store
from autopeft.api.place import output_folder
from autopeft.api.study import Study, bounds
from autopeft.api.versions import package_versions
from autopeft.errors import Fault, StudyMismatchError
from autopeft.execution.states import STATES
from autopeft.searchers.baselines import baselines
from autopeft.searchers.rungs import rung_steps
from autopeft.study.definition import (
    StudyDefinition,
    default_definition,
    difference,
    load_definition,
    parse_definition,
)
from autopeft.study.overrides import with_overrides
from autopeft.study.progress import Listener, Progress, Silent, Stopper
from autopeft.study.records import NewStudy, StudyRecord, StudyState
from autopeft.study.store import Store

PACK_SIZES = {"cpu": 4}
DEFAULT_PACK_SIZE = 8
"""Lanes of an automatic pack. On two CPU cores, samples/s hardly grow with the pack, so that a
small one only shares the trunk and lets the searcher learn sooner; a GPU has room for more."""


def resolve_definition(
    study: StudyDefinition | Path | str | None,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
) -> StudyDefinition:
    """The definition that a search's arguments stand for; without a study, the embedded default.

    Raises:
        InputError: All faults of file and overrides.
    """
    changes = [*overrides, *([f"study.name={name}"] if name else [])]
    if study is None:
        return default_definition(changes)
    if isinstance(study, StudyDefinition):
        plain = with_overrides(study.to_plain(), changes)
        return parse_definition(plain, where="the study", base=None)
    return load_definition(Path(study), changes)


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
        stop_after: Seconds after which this sitting ends.

    Raises:
        InputError: Faults of the study, its model, data or space, all at once.
        StudyMismatchError: A study of that name with another definition, data or backbone.
        StudyHeldError: Another coordinator runs it.
        InterruptedStudyError: Stopped before the end; everything is saved.
        StorageError: The database cannot be used.
    """
    definition = resolve_definition(study, name=name, overrides=overrides)
    folder = output_folder(definition.study.name, output_dir)
    store = open_store(storage, create=True)
    sitting = _Sitting(
        store, definition, folder, listener or Silent(), stopper or Stopper(), stop_after
    )
    sitting.run()
    return Study(store, definition.study.name, output_dir=folder)


class _Sitting:
    """One run of a study's coordinator, from load to release."""

    def __init__(
        self,
        store: Store,
        definition: StudyDefinition,
        folder: Path,
        listener: Listener,
        stopper: Stopper,
        stop_after: float | None,
    ) -> None:
        self._store, self._definition, self._folder = store, definition, folder
        self._listener, self._stopper, self._stop_after = listener, stopper, stop_after
        self._name = definition.study.name

    def run(self) -> None:
        from autopeft.tuner import LEASE_S
        from storage.lease import this_process

        existing = self._existing()
        if existing is not None:
            if self._is_finished(existing):
                return
            token = self._store.claim(self._name, this_process(), LEASE_S)
        self._listener.on_progress(Progress(self._name, "loading", 0, 0))
        try:
            prepared = self._prepare()
        except BaseException:
            if existing is not None:
                self._store.release(self._name, token)
            raise
        if existing is None:
            self._store.create_study(prepared.new_study())
            token = self._store.claim(self._name, this_process(), LEASE_S)
        try:
            prepared.check(self._store.study(self._name))
            plain = self._definition.to_plain()
            self._store.update_study(self._name, token, definition=plain)
            prepared.tuner(self._store, token).run()
        finally:
            self._store.release(self._name, token)

    def _existing(self) -> StudyRecord | None:
        record = next((r for r in self._store.studies() if r.name == self._name), None)
        if record is not None:
            faults = difference(record.definition, self._definition.to_plain())
            if faults:
                raise StudyMismatchError(faults)
        return record

    def _is_finished(self, record: StudyRecord) -> bool:
        return (
            record.state is StudyState.FINISHED
            and record.definition["budget"] == self._definition.to_plain()["budget"]
        )

    def _prepare(self) -> "_Prepared":
        return _Prepared(
            self._definition, self._folder, self._listener, self._stopper, self._stop_after
        )


class _Prepared:
    """Everything loaded and checked for one study: what takes seconds, done once."""

    def __init__(
        self,
        definition: StudyDefinition,
        folder: Path,
        listener: Listener,
        stopper: Stopper,
        stop_after: float | None,
    ) -> None:
        from autopeft.training import setup
        from autopeft.training.metrics import best_value

        self._definition, self._folder = definition, folder
        self._listener, self._stopper, self._stop_after = listener, stopper, stop_after
        self._quality = definition.objectives[0].metric
        self._device = setup.device_name(definition.execution.devices)
        self._materials = materials = setup.load_materials(
            definition.model,
            definition.data,
            definition.training,
            quality=self._quality,
            seed=definition.study.seed,
            device=self._device,
            output_dir=folder,
        )
        for note in materials.data.notes:
            listener.on_event(note)
        anatomy = materials.backbone.anatomy
        self._space = problems.bind_space(definition, anatomy)
        self._constant = setup.constant_quality(self._quality, materials.data)
        facts = problems.Facts(
            constant_quality=self._constant,
            best_quality=best_value(self._quality),
            head_params=materials.head_params,
            train_tokens=materials.train_tokens,
            n_validation=len(materials.data.validation),
        )
        self._problem = problems.make_problem(definition, anatomy, self._space, facts)
        defaults = problems.training_defaults(definition)
        self._baselines = baselines(definition.search.baselines, anatomy, training=defaults)
        self._enqueued = problems.enqueued(definition, anatomy)
        self._rungs = rung_steps(
            definition.search.rungs,
            total_steps=materials.total_steps,
            warmup_steps=round(definition.training.warmup_ratio * materials.total_steps),
        )
        pack = definition.search.pack
        automatic = PACK_SIZES.get(self._device, DEFAULT_PACK_SIZE)
        size = automatic if pack == "auto" else int(pack)
        self._pack_size = size if anatomy.packable else 1

    def new_study(self) -> NewStudy:
        """The record to create."""
        data, backbone = self._materials.data, self._materials.backbone
        space = self._space
        return NewStudy(
            name=self._definition.study.name,
            definition=self._definition.to_plain(),
            space_hash=space.hash,
            frame=self._problem.frame,
            fingerprints={"data": data.fingerprint, "backbone": backbone.fingerprint},
            versions=package_versions(),
            facts={
                "n_layers": len(backbone.anatomy.layers),
                "architecture": backbone.anatomy.architecture,
                "n_baselines": len(self._baselines),
                "total_steps": self._materials.total_steps,
                "rung_steps": {str(share): step for share, step in self._rungs.items()},
                "n_train": len(data.train),
                "n_validation": len(data.validation),
                "label_names": list(data.label_names),
                "metric": self._quality,
                "constant_quality": self._constant,
                "param_range": problems.param_range(space, self._definition, backbone.anatomy),
                "pack_size": self._pack_size,
                "head_params": self._materials.head_params,
                "data_notes": list(data.notes),
                "space_name": space.name,
                "cardinality": space.cardinality,
                "distinct": space.distinct,
                "continuous": space.continuous,
                "device": self._device,
            },
        )

    def check(self, record: StudyRecord) -> None:
        """Data and backbone are those the study was created with.

        Raises:
            StudyMismatchError: With the difference.
        """
        now = {
            "data": self._materials.data.fingerprint,
            "backbone": self._materials.backbone.fingerprint,
        }
        faults = [
            Fault(
                f"study {record.name}",
                f"{what} fingerprint",
                given[:16],
                record.fingerprints[what][:16],
                f"the {what} has changed since the study was created: start another study",
            )
            for what, given in now.items()
            if record.fingerprints[what] != given
        ]
        if record.space_hash != self._space.hash:
            faults.append(
                Fault(
                    f"study {record.name}",
                    "space",
                    self._space.hash[:16],
                    record.space_hash[:16],
                    "the space file has changed since the study was created",
                )
            )
        if faults:
            raise StudyMismatchError(faults)
        for package, before in record.versions.items():
            if (installed := package_versions().get(package)) != before:
                text = f"{package} is {installed} now and was {before} when the study was created"
                self._listener.on_event(text)

    def tuner(self, store: Store, token: int) -> Any:
        """The tuner of this sitting."""
        from autopeft.execution.inprocess import InProcessRunner
        from autopeft.searchers.registry import make_searcher
        from autopeft.tuner import Tuner, TunerSettings
        from autopeft.tuner.ledger import Ledger

        definition, record = self._definition, store.study(self._definition.study.name)
        budget = definition.budget
        settings = TunerSettings(
            trials=budget.trials,
            pack_size=int(record.facts["pack_size"]),
            rung_steps=self._rungs,
            baselines=self._baselines,
            enqueued=self._enqueued,
            head_params=self._materials.head_params,
            bounds=bounds(record),
            wall_clock_s=budget.wall_clock,
            train_s=None if budget.gpu_hours is None else budget.gpu_hours * 3600.0,
            stop_after_s=self._stop_after,
            states=self._folder / STATES,
            accuracy_like=self._quality in ("accuracy", "f1", "matthews"),
        )
        return Tuner(
            Ledger(store, definition.study.name, token),
            problem=self._problem,
            searcher=make_searcher(definition.search.searcher, self._problem),
            runner=InProcessRunner(self._materials.trainer),
            settings=settings,
            listener=self._listener,
            stopper=self._stopper,
        )
