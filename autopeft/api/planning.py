"""`autopeft.plan`: what a study would cost, before it is started.

Sizes, counts, FLOPs and memory are closed forms over the model's configuration and the tokenised
data; no weights are read. Hours need a measurement on the machine, which `probe` asks for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from autopeft.api import problem as problems
from autopeft.api.checks import study_faults
from autopeft.api.definitions import resolve_definition
from autopeft.api.executors import IN_PROCESS
from autopeft.api.importance_need import study_chooses_by_scores
from autopeft.api.loading import open_existing
from autopeft.api.place import output_folder
from autopeft.api.sources import baseline_sources, space_source
from autopeft.api.timing import Timed, probed_timing, stored_timing
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.searchers.base import Problem
from autopeft.searchers.baselines import baselines
from autopeft.searchers.rungs import KEEP, rung_steps
from autopeft.study.definition import StudyDefinition
from autopeft.study.metrics import CAUSAL_LM, REGRESSION
from autopeft.study.progress import Listener, Silent
from autopeft.training.data.examples import TaskData
from autopeft.training.memory import MemoryEstimate

if TYPE_CHECKING:
    import torch

Needs: TypeAlias = Callable[[Sequence[Configuration]], MemoryEstimate]
"""Memory of a pack of these lanes."""

SAMPLED = 64
"""Configurations of the space whose mean FLOPs stand for a trial's."""


def plan(
    study: StudyDefinition | Path | str | None = None,
    *,
    probe: bool = False,
    storage: str | None = None,
    output_dir: Path | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Size of the space, parameters, steps, memory, FLOPs, and with `probe` hours.

    Args:
        study: A definition, a study file, or None for the embedded default.
        probe: Whether to time some steps on this machine: the only training that happens. A study
            that is stored, and was timed on this machine when it was created, is not timed again.
        storage: URL of the database in which such a study may be, and the importance map that a
            space may need; none is made.
        output_dir: The study's artifacts, whose converted data are used where they are.
        listener: Told what the probe does.

    Returns:
        Plain JSON; `calibration` and `hours` are None where nothing was timed, as are the ranges
        of measured costs in `measured`. `timed_by` is `probe`, or `study` where it is the stored
        study's.

    Raises:
        InputError: Faults of the study, its model, data or space, all at once.
    """
    definition = resolve_definition(study)
    folder = output_folder(definition.study.name, output_dir)
    listener = listener or Silent()
    with TemporaryDirectory(prefix="autopeft-", ignore_cleanup_errors=True) as scratch:
        place = folder if folder.is_dir() else Path(scratch)
        estimate = _Estimate.of(definition, place, storage)
        found = Timed()
        if probe:
            data = estimate.data.fingerprint
            found = stored_timing(definition, data, storage) or probed_timing(
                definition, place, listener
            )
    return estimate.to_dict(found)


@dataclass(frozen=True)
class _Estimate:
    """Everything that the closed forms need."""

    definition: StudyDefinition
    anatomy: Anatomy
    head: HeadRecipe
    data: TaskData
    problem: Problem
    baselines: Mapping[str, Configuration]
    total_steps: int
    never_proposed: Sequence[str]

    @classmethod
    def of(cls, definition: StudyDefinition, folder: Path, storage: str | None) -> "_Estimate":
        from autopeft.api.measuring import stored_map
        from autopeft.backbone.skeleton import config_recipe, config_tokenizer, skeleton
        from autopeft.importance.chance import with_random
        from autopeft.training.data.tokenising import load_task_data
        from autopeft.training.setup import backbone_request, data_request, full_budget_steps

        where = f"study {definition.study.name}"
        if faults := study_faults(definition, where=where, output_dir=folder):
            raise InputError(faults)
        request, task = backbone_request(definition.model), definition.model.task
        bones = skeleton(request)
        anatomy = bones.anatomy
        wanted = data_request(definition.data, task=task, seed=definition.study.seed)
        data = load_task_data(wanted, config_tokenizer(request), output_dir=folder)
        if study_chooses_by_scores(definition):
            found = stored_map(definition, data.fingerprint, open_existing(storage))
            random = with_random(found, definition.study.seed)
            anatomy = replace(anatomy, importance=random)
        outputs = 1 if task == REGRESSION else len(data.label_names)
        head = config_recipe(request, bones, outputs)
        total = full_budget_steps(definition.training, len(data.train))
        facts = problems.Facts(
            constant_quality=0.0,
            best_quality=1.0,
            head_params=head.n_parameters,
            train_tokens=round(data.train.n_tokens * total * _batch(definition) / len(data.train)),
            n_validation=len(data.validation),
        )
        space = problems.bind_space(definition, anatomy)
        tried = problems.tried_faults(definition, anatomy, space)
        if faults := problems.build_faults(tried):
            raise InputError(faults)
        training = problems.training_defaults(definition)
        return cls(
            definition,
            anatomy,
            head,
            data,
            problems.make_problem(definition, anatomy, space, facts),
            baselines(definition.search.baselines, anatomy, training=training),
            total,
            problems.barred_parts(tried),
        )

    def to_dict(self, found: Timed) -> dict[str, Any]:
        space, total, calibration = self.problem.space, self.total_steps, found.calibration
        flops = self._flops()
        return {
            "study": self.definition.study.name,
            "space": {
                "name": space.name,
                **space_source(self.definition.space),
                "dimensions": len(space.dimensions),
                "cardinality": space.cardinality,
                "distinct": space.distinct,
                "continuous": space.continuous,
            },
            "trainable_params": problems.param_range(space, self.definition, self.anatomy),
            "head_params": self.head.n_parameters,
            "steps": {
                "total": total,
                "rungs": {str(share): step for share, step in self._rungs().items()},
                "batch_size": self.definition.training.batch_size,
                "trials": self.definition.budget.trials,
                "baselines": len(self.baselines),
            },
            "baselines": baseline_sources(self.definition),
            "runners": self._runners(),
            "flops": flops,
            "memory": self._memory(calibration),
            "timed_by": found.by,
            "calibration": None if calibration is None else dict(calibration),
            "hours": None if calibration is None else self._hours(calibration, flops),
            "deploy": dict(problems.not_deployed(self.definition, self.anatomy, space)),
            "never_proposed": list(self.never_proposed),
            "measured": {name: found.range_of(name) for name in self.definition.measured},
        }

    def _rungs(self) -> dict[float, int]:
        from autopeft.training.lanes.passes import warmup_steps

        ratio = problems.longest_warmup(self.definition, self.problem.space)
        return rung_steps(
            self.definition.search.rungs,
            total_steps=self.total_steps,
            warmup_steps=warmup_steps(ratio, self.total_steps),
        )

    def _lane(self) -> Configuration:
        """What a typical lane trains: the first baseline."""
        return next(iter(self.baselines.values()), self._largest())

    def _largest(self) -> Configuration:
        return problems.largest_configuration(self.problem)

    def _memory(self, calibration: Mapping[str, Any] | None) -> dict[str, Any]:
        """Of the chosen pack, every lane the space's largest configuration."""
        from autopeft.execution.calibration import LEAST_PACK
        from autopeft.execution.fitting import free_bytes
        from autopeft.training.memory import MARGIN, largest_pack
        from autopeft.training.setup import device_of

        device = device_of(self.definition.execution.devices)
        free, given = free_bytes(device), self.definition.search.pack
        precision = self.definition.training.precision
        if precision == "auto":
            precision = calibration["precision"] if calibration else "fp32"

        def fitting(needs: Needs) -> int | None:
            if free is None:
                return None
            available = round(free * (1.0 - MARGIN))
            return largest_pack(self._largest(), lambda lanes: needs(lanes).total, available)

        wanted = LEAST_PACK if given == "auto" else int(given)
        wanted = wanted if self.anatomy.packable else 1
        for recomputed, rows in self._ways():  # as `fitting.fitted_settings` tries them
            needs = self._needs(device, precision, checkpointing=recomputed, rows=rows)
            largest = fitting(needs)
            if largest is None or largest >= wanted:
                break
        pack = self._pack(given, calibration, largest)
        return {
            "device": device.type,
            "precision": precision,
            "gradient_checkpointing": recomputed,
            "micro_batch_size": rows,
            "free_bytes": free,
            "margin": MARGIN,
            "pack_size": pack,
            "largest_pack": largest,
            **needs([self._largest()] * pack).to_dict(),
            "baseline_total_bytes": needs([self._lane()] * pack).total,
        }

    def _ways(self) -> Iterator[tuple[bool, int]]:
        """Whether layers are recomputed, and rows at once: from fast to sparing."""
        training = self.definition.training
        given, micro = training.gradient_checkpointing, training.micro_batch_size
        rows = min(_batch(self.definition) if micro == "auto" else micro, len(self.data.train))
        recomputed = given is True
        yield recomputed, rows
        if given == "auto" and self.anatomy.packable:
            recomputed = True
            yield recomputed, rows
        while micro == "auto" and rows > 1:
            rows = -(-rows // 2)
            yield recomputed, rows

    def _needs(
        self, device: "torch.device", precision: str, *, checkpointing: bool, rows: int
    ) -> Needs:
        """What a pack of lanes needs in the study's largest step."""
        import torch

        from autopeft.backbone.memory import backbone_bytes
        from autopeft.execution.fitting import step_overhead
        from autopeft.training import memory, step_shape
        from autopeft.training.lanes.heads import reads_first_token
        from autopeft.training.lanes.scaled_products import whole_vectors
        from autopeft.training.setup import backbone_request
        from autopeft.training.tasks.token_loss import CHUNK_ELEMENTS

        model = self.definition.model
        shape = step_shape.StepShape(
            rows=rows,
            tokens=max(self.data.train.longest, self.data.validation.longest),
            evaluated=len(self.data.validation),
            evaluation_tokens=step_shape.evaluation_tokens(device.type),
            compute=precision,
            checkpointing=checkpointing,
            logits=CHUNK_ELEMENTS if model.task == CAUSAL_LM else 0,
            overhead=step_overhead(
                device, in_process=self.definition.execution.executor == IN_PROCESS
            ),
            lanes_per_pass=step_shape.lanes_per_pass(
                device.type,
                rows=rows,
                mean_tokens=self.data.train.n_tokens / len(self.data.train),
                intermediate_size=self.anatomy.intermediate_size,
                threads=torch.get_num_threads(),
            ),
            key_vectors=whole_vectors(1, device.type),
            first_token=reads_first_token(
                self.anatomy,
                self.head,
                attention=model.attn_implementation.replace("auto", "sdpa"),
            ),
        )
        weights = step_shape.Weights(
            step_shape.BFLOAT16 if model.dtype == "bfloat16" else step_shape.FLOAT32,
            model.quantization,
            backbone_bytes(backbone_request(model)),
        )
        return lambda lanes: memory.estimate(
            lanes, self.anatomy, head_params=self.head.n_parameters, shape=shape, weights=weights
        )

    def _pack(
        self, given: int | str, calibration: Mapping[str, Any] | None, largest: int | None
    ) -> int:
        from autopeft.execution.calibration import LEAST_PACK

        if not self.anatomy.packable:
            return 1
        if given != "auto":
            return int(given)
        if calibration is not None:
            return int(calibration["pack_size"])
        return max(1, min(LEAST_PACK, LEAST_PACK if largest is None else largest))

    # -- cost ---------------------------------------------------------------------------------

    def _flops(self) -> dict[str, float]:
        """Of a full trial, training and evaluation: smallest, largest and mean of the space.

        `least` is the smallest without the frozen layers below it, which are kept or shared.
        """
        space, rng = self.problem.space, np.random.default_rng(self.problem.seed)
        sampled = [self.problem.build(space.sample(rng)) for _ in range(SAMPLED)]
        sampled = [each for each in sampled if self.problem.feasible(each)] or [self._largest()]
        smallest = problems.smallest_configurations(self.problem)
        return {
            "min": min(map(self.problem.flops, smallest)),
            "max": self.problem.flops(self._largest()),
            "mean": float(np.mean([self.problem.flops(each) for each in sampled])),
            "least": min(map(self._unshared, smallest)),
            "evaluation": self._evaluation_flops(),
        }

    def _unshared(self, configuration: Configuration) -> float:
        return self.problem.flops(configuration) - self.problem.trunk_flops(configuration)

    def _evaluation_flops(self) -> float:
        """Of one forward pass over the validation split."""
        weights = sum(
            site.in_features * site.out_features
            for layer in self.anatomy.layers
            for site in layer.sites.values()
        )
        return 2.0 * weights * self.data.validation.n_tokens

    def _hours(
        self, calibration: Mapping[str, Any], flops: Mapping[str, float]
    ) -> dict[str, float] | None:
        """Of the whole study, at least and at most.

        At least: all are as small as the smallest, as many are stopped at every rung as may be,
        and frozen layers below them cost nothing, as they are kept, or shared by a pack. At most:
        all are of the space's mean, none is stopped, nothing is shared. Baselines are counted in
        full. A trial's seconds are those of a lane of the probe, by FLOPs; runners share a cohort.
        """
        timed = {int(k): float(v) for k, v in calibration["step_seconds"].items()}
        if not timed:
            return None
        size, at_once = self._side_by_side(int(calibration["pack_size"]))
        lanes = max((k for k in timed if k <= size), default=min(timed))
        per_flop = timed[lanes] / lanes * self.total_steps / self.problem.flops(self._lane())
        keep = 1.0 if self.definition.search.stopping == "none" else KEEP
        low = high = before = 0.0
        for passed, step in enumerate(self._rungs().values()):
            share = (step - before) / self.total_steps
            cost = share * flops["mean"] + flops["evaluation"]
            least = cost * flops["least"] / flops["mean"]
            low, high, before = low + keep**passed * least, high + cost, step
        begun = self.definition.budget.trials
        full = len(self.baselines) * high
        hours = per_flop / 3600.0 / at_once
        return {"min": (begun * low + full) * hours, "max": (begun * high + full) * hours}

    def _side_by_side(self, pack: int) -> tuple[int, int]:
        """Lanes of a cohort's packs, and how many of these train at once.

        Args:
            pack: Most lanes of a pack.
        """
        from autopeft.api.preparation import cohort_size
        from autopeft.training.setup import device_of

        device = device_of(self.definition.execution.devices).type
        cohort = cohort_size(self.definition, device, packable=self.anatomy.packable)
        runners = self._runners()
        size = max(1, min(pack, -(-cohort // runners)))  # as `tuner.packs.PackTraining.size`
        return size, min(runners, -(-cohort // size))

    def _runners(self) -> int:
        """That train side by side; 1 where only the cluster knows."""
        from autopeft.training.setup import device_names

        execution = self.definition.execution
        if execution.executor == "ray":
            return 1 if execution.ray.workers == "auto" else execution.ray.workers
        return len(device_names(execution.devices)) if execution.executor == "local" else 1


def _batch(definition: StudyDefinition) -> int:
    return definition.training.batch_size
