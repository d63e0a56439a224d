"""What a search needs before its first trial: loaded and checked once, in a few seconds."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.api import problem as problems
from autopeft.api.calibrating import calibrated, fitted
from autopeft.api.executors import Ground, make_executor
from autopeft.api.importance_need import study_needs_importance
from autopeft.api.measuring import (
    Ensured,
    ensure_importance,
    importance_settings,
    with_importance,
)
from autopeft.api.probing import SpaceProbes, probe_ends
from autopeft.api.resuming import check_unchanged
from autopeft.api.sources import method_sources
from autopeft.api.study import bounds
from autopeft.api.versions import package_versions
from autopeft.api.warm_start import Ground as WarmGround
from autopeft.api.warm_start import Source, warm_start
from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.execution.states import states_folder
from autopeft.searchers.baselines import baselines
from autopeft.searchers.rungs import rung_steps
from autopeft.searchers.warm_start import Carried
from autopeft.study.definition import StudyDefinition
from autopeft.study.progress import Listener, Stopper
from autopeft.study.records import ImportanceRecord, NewStudy, StudyRecord
from autopeft.study.sitting import NOT_STORED, Sitting
from autopeft.study.store import Store

if TYPE_CHECKING:
    from autopeft.execution.base import Executor
    from autopeft.execution.calibration import Calibration
    from autopeft.execution.inprocess import InProcessRunner
    from autopeft.execution.probe import SoloProbe
    from autopeft.execution.spare import Spare
    from autopeft.searchers.base import Problem
    from autopeft.training.loop import Trainer
    from autopeft.training.setup import Materials
    from autopeft.tuner import Tuner
    from autopeft.tuner.confirming import ConfirmationTraining

ACCURACY_LIKE = ("accuracy", "exact_match", "choice_accuracy")
"""Qualities that are shares of the validation rows: their noise is binomial. The noise of all
others is measured, by how they scatter between rungs."""

PROPOSALS = {"cpu": 4}
DEFAULT_PROPOSALS = 16
"""Trials of an automatic cohort. On a CPU they gain little by being many, and every smaller ask
lets the searcher learn sooner; a GPU needs many lanes to be busy."""


class Preparation:
    """Everything loaded and checked for one study.

    Args:
        definition: What the study file says.
        folder: Where artifacts go.
        listener: Told what was found.
        store: Where importance maps are kept; None where there is no database yet.
        sitting: Asks for an early end of what takes long, and counts what that costs.
        spare: A runner's process that was begun before, for whatever executor can use it.

    Raises:
        InputError: Faults of the model, the data or the space.
        InterruptedStudyError: Asked to stop while importance was measured.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        folder: Path,
        listener: Listener,
        *,
        store: Store | None = None,
        sitting: Sitting | None = None,
        spare: "Spare | None" = None,
    ) -> None:
        from autopeft.api.materials import study_materials
        from autopeft.training import setup
        from autopeft.training.metrics import best_value

        self._definition, self._folder, self._spare = definition, folder, spare
        self._quality = definition.objectives[0].metric
        self._device = setup.device_name(definition.execution.devices).partition(":")[0]
        materials = study_materials(definition, folder)
        for note in materials.data.notes:
            listener.on_event(note)
        self._ensured: Ensured | None = None
        if study_needs_importance(definition):
            materials = self._scored(materials, store, listener, sitting or Sitting())
        self._materials = materials
        anatomy = materials.backbone.anatomy
        self._space = problems.bind_space(definition, anatomy)
        tried = problems.tried_faults(definition, anatomy, self._space)
        if faults := problems.build_faults(tried):
            raise InputError(faults)
        for note in problems.barred_parts(tried):
            listener.on_event(note)
        for what, why in problems.not_deployed(definition, anatomy, self._space).items():
            listener.on_event(f"deploy leaves out {what}: {why}")
        self._constant = setup.constant_quality(
            self._quality, materials.data, n_vocabulary=materials.n_vocabulary
        )
        self._facts = problems.Facts(
            constant_quality=self._constant,
            best_quality=best_value(self._quality),
            head_params=materials.head_params,
            train_tokens=materials.train_tokens,
            n_validation=len(materials.data.validation),
        )
        self._problem = problems.make_problem(definition, anatomy, self._space, self._facts)
        defaults = problems.training_defaults(definition)
        self._baselines = baselines(definition.search.baselines, anatomy, training=defaults)
        self._enqueued = problems.enqueued(definition, anatomy)
        if faults := problems.barred(self._enqueued, self._problem):
            raise InputError(faults)
        self._materials = fitted(materials, definition, self.largest_configuration(), listener)
        self._rungs = rung_steps(
            definition.search.rungs,
            total_steps=materials.total_steps,
            warmup_steps=self._warmup_steps(materials.total_steps),
        )
        listener.on_event(self._summary())

    def _scored(
        self, materials: "Materials", store: Store | None, listener: Listener, sitting: Sitting
    ) -> "Materials":
        """The materials, whose backbone knows how much its sites matter for the data."""
        self._ensured = ensure_importance(
            materials,
            store,
            settings=importance_settings(self._definition),
            study=self._definition.study.name,
            listener=listener,
            sitting=sitting,
        )
        seed = self._definition.study.seed
        return with_importance(materials, self._ensured.importance, seed=seed)

    def keep_importance(self, store: Store) -> None:
        """Store what was measured for all studies, where it did not come from there."""
        if self._ensured is not None and self._ensured.record is not None:
            store.keep_importance(self._ensured.record)
            self._ensured = Ensured(self._ensured.importance)

    def _summary(self) -> str:
        """One line on what is about to happen."""
        data, anatomy = self._materials.data, self._materials.backbone.anatomy
        return (
            f"{self._materials.backbone.name}: {anatomy.n_params / 1e6:.1f} M parameters, "
            f"{len(anatomy.layers)} layers; {len(data.train)} examples train, "
            f"{len(data.validation)} choose; {self._materials.total_steps} steps a trial, "
            f"on {self._device}"
        )

    def _warmup_steps(self, total_steps: int) -> int:
        """The longest warm-up of any configuration."""
        from autopeft.training.lanes.passes import warmup_steps

        return warmup_steps(problems.longest_warmup(self._definition, self._space), total_steps)

    def calibrate(
        self, listener: Listener, sitting: Sitting, *, timed: bool = False
    ) -> "Calibration":
        """Pack size and precision: the study's own, else what a short run on this machine finds.

        Args:
            listener: Told what was found.
            sitting: Asks for an early end, and counts what it takes.
            timed: Whether packs are timed even where the study says their size.

        Raises:
            InterruptedStudyError: Asked to stop meanwhile; nothing is stored yet.
        """
        return calibrated(
            self._materials,
            self._definition,
            largest=self.largest_configuration(),
            probe=self.probe_configuration(),
            listener=listener,
            sitting=sitting,
            timed=timed,
        )

    def probe_space(
        self, calibration: "Calibration", listener: Listener, sitting: Sitting
    ) -> "SpaceProbes | None":
        """What the study's measured costs are at the ends of its space; None without such costs.

        Raises:
            InterruptedStudyError: Asked to stop meanwhile; nothing is stored yet.
            InputError: Not even one end could be measured.
        """
        if not self._definition.measured:
            return None
        probe = self._solo_probe(self._trainer_of(calibration.precision))
        ends = problems.probed_ends(self._problem)
        name = self._definition.study.name

        def go_on() -> None:
            sitting.heed(name, NOT_STORED)

        with sitting.on_device():
            return probe_ends(probe, ends, self._definition, listener, go_on=go_on)

    def _solo_probe(self, trainer: "Trainer") -> "SoloProbe":
        from autopeft.execution.probe import SoloProbe

        return SoloProbe(
            trainer,
            self._materials.data,
            metrics=self._definition.measured,
            max_length=self._definition.data.max_length,
        )

    def _trainer_of(self, precision: str, micro_batch_size: int | None = None) -> "Trainer":
        """The trainer of a study's trials."""
        from autopeft.training.setup import with_settings

        own = self._materials.trainer.settings.micro_batch_size
        micro = min(own, micro_batch_size or own)
        return with_settings(self._materials, precision=precision, micro_batch_size=micro).trainer

    def _measured_problem(self, measured: "problems.Ranges") -> "Problem":
        """The problem with the frames of measured costs."""
        anatomy = self._materials.backbone.anatomy
        return problems.make_problem(
            self._definition, anatomy, self._space, self._facts, measured=measured
        )

    def probe_configuration(self) -> Configuration:
        """What the lanes of a calibration train: the first baseline, or one like it."""
        anatomy = self._materials.backbone.anatomy
        found = dict(self._baselines)
        if not found and {"query", "value"} & set(anatomy.roles):
            training = problems.training_defaults(self._definition)
            found = baselines(("lora-r8",), anatomy, training=training)
        return next(iter(found.values()), self.largest_configuration())

    def largest_configuration(self) -> Configuration:
        """The configuration of the space that needs most memory."""
        return problems.largest_configuration(self._problem)

    def warm_start(self, sources: Sequence[Source], listener: Listener) -> list[Carried]:
        """What of earlier studies is tried first; what differs between them is told.

        Raises:
            InputError: A study of which nothing fits, with the differences.
        """
        ground = WarmGround(
            self._definition,
            self._problem,
            self._space.hash,
            self._materials.backbone.fingerprint,
        )
        tried_anyway = (*self._baselines.values(), *self._enqueued)
        found, notes = warm_start(ground, sources, frozenset(each.hash for each in tried_anyway))
        for note in notes:
            listener.on_event(note)
        return found

    def new_study(
        self,
        calibration: "Calibration",
        carried: Sequence[Carried] = (),
        probes: "SpaceProbes | None" = None,
    ) -> NewStudy:
        """The record to create: what calibration and probes found, what earlier studies gave."""
        from autopeft.execution.probe import machine_name

        data, backbone = self._materials.data, self._materials.backbone
        space, problem = self._space, self._problem
        if probes is not None:
            problem = self._measured_problem(probes.ranges)
        return NewStudy(
            name=self._definition.study.name,
            definition=self._definition.to_plain(),
            space_hash=space.hash,
            frame=problem.frame,
            fingerprints={"data": data.fingerprint, "backbone": backbone.fingerprint},
            versions=package_versions(),
            facts={
                "n_layers": len(backbone.anatomy.layers),
                "architecture": backbone.anatomy.architecture,
                "n_baselines": len(self._baselines),
                "method_sources": method_sources(
                    space, (*self._baselines.values(), *self._enqueued)
                ),
                "total_steps": self._materials.total_steps,
                "rung_steps": {str(share): step for share, step in self._rungs.items()},
                "n_train": len(data.train),
                "n_validation": len(data.validation),
                "label_names": list(data.label_names),
                "metric": self._quality,
                "constant_quality": self._constant,
                "param_range": problems.param_range(space, self._definition, backbone.anatomy),
                "pack_size": calibration.pack_size,
                "proposals": cohort_size(
                    self._definition, self._device, packable=backbone.anatomy.packable
                ),
                "precision": calibration.precision,
                "tf32": False,
                "micro_batch_size": self._materials.trainer.settings.micro_batch_size,
                "calibration": calibration.to_dict() if calibration.seconds else None,
                "probes": None if probes is None else probes.to_dict(),
                "head_params": self._materials.head_params,
                "data_notes": list(data.notes),
                "space_name": space.name,
                "cardinality": space.cardinality,
                "distinct": space.distinct,
                "continuous": space.continuous,
                "device": self._device,
                "machine": machine_name(self._materials.trainer.device),
                "importance": self._importance_facts(),
                "warm_start": [each.to_dict() for each in carried],
            },
        )

    def _importance_facts(self) -> dict[str, str] | None:
        """Which map the study is searched with; None where it has none."""
        if self._ensured is None:
            return None
        found = self._ensured.importance
        return {"key": found.fingerprint, **found.facts}

    def _states(self, record: StudyRecord) -> Path:
        """The study's folder of lane states; there from now on, so that others see who is here."""
        folder = states_folder(self._folder, record.created_at)
        with suppress(OSError):  # a full disk is told where lanes are saved
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _memory_limit(self, record: StudyRecord) -> int | None:
        """Lanes that fitted where larger packs did not, in earlier sittings on such a device."""
        limit = record.facts.get("memory_limit")
        return int(limit["lanes"]) if limit and limit["device"] == self._device else None

    def check(self, record: StudyRecord, listener: Listener) -> None:
        """Data, backbone and space are those the study was created with; versions are compared.

        Raises:
            StudyMismatchError: With the difference.
        """
        check_unchanged(
            record,
            fingerprints={
                "data": self._materials.data.fingerprint,
                "backbone": self._materials.backbone.fingerprint,
            },
            space_hash=self._space.hash,
            device=self._materials.trainer.device,
            listener=listener,
        )

    def tuner(
        self,
        store: Store,
        token: int,
        *,
        listener: Listener,
        sitting: Sitting,
    ) -> "Tuner":
        """The tuner of one sitting."""
        from autopeft.searchers.registry import make_searcher
        from autopeft.tuner import Tuner, TunerSettings
        from autopeft.tuner.ledger import Ledger

        definition, record = self._definition, store.study(self._definition.study.name)
        budget = definition.budget
        precision, micro_batch_size = self._as_trained(record)
        probes = SpaceProbes.stored(record)
        problem = self._problem if probes is None else self._measured_problem(probes.ranges)
        listener.on_event(f"packs of at most {record.facts['pack_size']} trials, {precision}")
        known = [Carried.from_dict(each) for each in record.facts.get("warm_start", ())]
        # They are a part of the start, which so does not grow by them.
        problem = replace(problem, initial=max(0, problem.initial - len(known)))
        settings = TunerSettings(
            trials=budget.trials,
            proposals=int(record.facts.get("proposals", record.facts["pack_size"])),
            pack_size=int(record.facts["pack_size"]),
            memory_limit=self._memory_limit(record),
            device=self._device,
            rung_steps=_stored_rungs(record) or self._rungs,
            baselines=self._baselines,
            enqueued=self._enqueued,
            head_params=self._materials.head_params,
            bounds=bounds(record),
            wall_clock_s=budget.wall_clock,
            train_s=None if budget.gpu_hours is None else budget.gpu_hours * 3600.0,
            states=self._states(record),
            accuracy_like=self._quality in ACCURACY_LIKE,
            stops=definition.search.stopping != "none",
            warm_start=[each.proposal for each in known],
            probes=probes is not None,
            min_gain=budget.min_gain,
            optimizer_steps=budget.optimizer_steps,
            micro_batch_size=micro_batch_size,
        )
        executor = self._executor(store, record, sitting.stopper, probes=probes is not None)
        return Tuner(
            Ledger(store, definition.study.name, token),
            problem=problem,
            searcher=make_searcher(definition.search.searcher, problem),
            executor=executor,
            settings=settings,
            listener=listener,
            sitting=sitting,
        )

    def confirmation(
        self, store: Store, token: int, *, listener: Listener, sitting: Sitting
    ) -> "ConfirmationTraining":
        """What trains chosen trials of the study again, as the search trained them."""
        from autopeft.tuner.confirming import ConfirmationTraining, confirmation_settings

        name = self._definition.study.name
        record = store.study(name)
        settings = confirmation_settings(
            pack_size=int(record.facts["pack_size"]),
            memory_limit=self._memory_limit(record),
            device=self._device,
            total_steps=self._materials.total_steps,
            head_params=self._materials.head_params,
            states=states_folder(self._folder, record.created_at),
        )
        return ConfirmationTraining(
            store,
            name,
            token,
            problem=self._problem,
            executor=self._executor(store, record, sitting.stopper, probes=False),
            settings=settings,
            listener=listener,
            sitting=sitting,
        )

    def _as_trained(self, record: StudyRecord) -> tuple[str, int]:
        """Precision and micro-batch of a study's trials."""
        own = self._materials.trainer.settings.micro_batch_size
        stored = int(record.facts.get("micro_batch_size") or own)
        return str(record.facts.get("precision", "fp32")), min(own, stored)

    def _executor(
        self, store: Store, record: StudyRecord, stopper: Stopper, *, probes: bool
    ) -> "Executor":
        """What trains packs as the study's definition says."""
        precision, micro_batch_size = self._as_trained(record)
        return make_executor(
            Ground(
                definition=self._definition,
                record=record,
                folder=self._folder,
                precision=precision,
                micro_batch_size=micro_batch_size,
                gradient_checkpointing=self._materials.trainer.settings.gradient_checkpointing,
                probes=probes,
                importance=lambda: self._importance_record(store),
                stopper=stopper,
                in_process=lambda: self._in_process(precision, micro_batch_size, probes),
                spare=self._spare,
            )
        )

    def _in_process(
        self, precision: str, micro_batch_size: int, probes: bool
    ) -> "InProcessRunner":
        from autopeft.execution.inprocess import InProcessRunner

        trainer = self._trainer_of(precision, micro_batch_size)
        return InProcessRunner(trainer, self._solo_probe(trainer) if probes else None)

    def _importance_record(self, store: Store) -> "ImportanceRecord | None":
        """The study's map with all its parts."""
        if self._ensured is None:
            return None
        return self._ensured.record or store.importance(self._ensured.importance.fingerprint)

    def release(self) -> None:
        """Give back backbone and data, once runners hold their own; nothing can be asked then."""
        import gc

        import torch

        del self._materials
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def cohort_size(definition: StudyDefinition, device: str, *, packable: bool) -> int:
    """Trials of a cohort: what the study says, else its pack size, else a constant.

    Never what a calibration found: timing may decide how trials are grouped, which changes no
    result, but not how many are proposed at once, which changes what is proposed.

    Args:
        definition: The study.
        device: The kind on which it is created.
        packable: Whether its backbone can train several lanes together.
    """
    given, pack = definition.search.proposals, definition.search.pack
    if given != "auto":
        return int(given)
    if not packable:
        return 1
    return PROPOSALS.get(device, DEFAULT_PROPOSALS) if pack == "auto" else int(pack)


def _stored_rungs(record: StudyRecord) -> dict[float, int]:
    """Where the study's rungs were when it was created; its trials were measured there."""
    stored = record.facts.get("rung_steps") or {}
    return {float(share): int(step) for share, step in stored.items()}
