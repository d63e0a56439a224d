"""The training loop: one pack, from rung to rung, over data shared by all packs of a process."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autopeft.backbone.heads import HeadRecipe, lm_recipe
from autopeft.backbone.loading import Backbone
from autopeft.errors import TrialError
from autopeft.methods.lane_operator import Call
from autopeft.study.confirmation import Opening
from autopeft.study.metrics import CAUSAL_LM, DENSITY, REGRESSION
from autopeft.study.records import Measurement
from autopeft.training.activations import ActivationCache, CacheBudget
from autopeft.training.batches import Batch, PaddedExamples, steps_per_epoch, training_order
from autopeft.training.caching import make_caches
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.density import activation_densities
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.passes import LanePass, in_passes
from autopeft.training.lanes.predict import predict
from autopeft.training.lanes.rules import Answer
from autopeft.training.lanes.scoring import scored_losses, scoring_rows
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState, put_state, take_state
from autopeft.training.lanes.steps import autocast
from autopeft.training.lanes.trunk import SharedTrunk
from autopeft.training.profile import DeviceTime, Profile
from autopeft.training.settings import LoopSettings
from autopeft.training.step_shape import lanes_per_pass
from autopeft.training.tasks import CausalTask, SequenceTask, Task

CURVE_POINTS = 20
"""Points of the training-loss curve over the full budget."""


@dataclass(frozen=True)
class Evaluation:
    """One lane on the validation split.

    Attributes:
        values: By metric; empty where the lane has diverged.
        diverged: Whether weights or predictions are not finite.
    """

    values: Mapping[str, float]
    diverged: bool


class Trainer:
    """The persistent part: backbone and tokenised data of one study, in one process.

    Args:
        backbone: Frozen.
        data: Tokenised train and validation examples.
        settings: Shared by all trials.
        study_seed: Source of all randomness.

    Attributes:
        task: The head, the loss and the metrics.
        train: The examples that train.
        validation: The examples that choose.
        caches: Kept activations, by examples.
    """

    def __init__(
        self, backbone: Backbone, data: TaskData, settings: LoopSettings, *, study_seed: int
    ) -> None:
        self.backbone, self.settings, self.study_seed = backbone, settings, study_seed
        self.device = next(backbone.model.parameters()).device
        self.task = _task(backbone, settings.task, len(data.label_names))
        self.train = self.padded(data.train)
        self.validation = self.padded(data.validation)
        self._open_test = data.open_test
        self._test: PaddedExamples | None = None
        epoch = steps_per_epoch(len(self.train), settings.batch_size)
        if settings.cache.folder is not None and settings.cache.disk_bytes:
            backbone.decompositions.keep_in(settings.cache.folder, backbone.fingerprint)
        keeps = backbone.handed_on.from_first and not settings.backbone_dropout
        self.caches: dict[PaddedExamples, ActivationCache] = make_caches(
            backbone,
            {self.train: self.order(0, epoch), self.validation: None},
            settings.cache if keeps else CacheBudget(),
            max_rows=settings.micro_batch_size,
            precision=settings.precision,
            fingerprint=data.fingerprint,
        )

    @property
    def lanes_per_pass(self) -> int:
        """Lanes that run together (`step_shape.lanes_per_pass`); one where none can share."""
        if not self.backbone.anatomy.packable:
            return 1
        return self.settings.lanes_per_pass or lanes_per_pass(
            self.device.type,
            rows=min(self.settings.micro_batch_size, len(self.train)),
            mean_tokens=float(self.train.lengths.mean()),
            intermediate_size=self.backbone.anatomy.intermediate_size,
            threads=torch.get_num_threads(),
        )

    @property
    def recipe(self) -> HeadRecipe:
        """The task head."""
        return self.task.recipe

    def padded(self, examples: Examples) -> PaddedExamples:
        """Examples on the device."""
        pad = getattr(self.backbone.tokenizer, "pad_token_id", None) or 0
        return PaddedExamples(examples, pad_token_id=pad, device=self.device)

    def test(self, opening: Opening) -> PaddedExamples:
        """The examples of the test split, read when they are first asked for.

        Args:
            opening: The record of it: nobody opens the split without one.

        Raises:
            DataError: The study names no test split, or its rows cannot be used.
        """
        if self._test is None:
            if self._open_test is None:
                raise ValueError("these data have no test split")
            self._test = self.padded(self._open_test(opening))
        return self._test

    def order(self, replicate: int, steps: int) -> list[np.ndarray]:
        """Example numbers of a replicate's first training batches."""
        return training_order(
            self.train.lengths,
            batch_size=self.settings.batch_size,
            total_steps=steps,
            seeds=Seeds(self.study_seed, replicate),
        )

    def start(
        self,
        lanes: Sequence[Lane],
        *,
        replicate: int = 0,
        states: dict[int, LaneState] | None = None,
        chosen: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> "PackRun":
        """A pack of these lanes, fresh or continued from saved states.

        Args:
            lanes: What trains.
            replicate: Of the study's seed.
            states: Of all lanes, by number; None for a fresh start.
            chosen: Fixed tensors of fresh lanes that are not to be chosen anew, by number and
                saved name.
        """
        with _memory_errors():
            return PackRun(self, lanes, replicate, states, chosen or {})


def _task(backbone: Backbone, task: str, n_classes: int) -> Task:
    if task == CAUSAL_LM:
        if backbone.lm_head is None:
            raise ValueError(f"{backbone.name} was loaded without its language-model head")
        return CausalTask(lm_recipe(), backbone.lm_head)
    if task == REGRESSION:
        return SequenceTask(backbone.head(1), 0)
    return SequenceTask(backbone.head(n_classes), n_classes)


class PackRun:
    """One pack in training.

    Its lanes run through the backbone in passes of `lanes_per_pass`, which share batches, draws
    and the trunk.

    Attributes:
        lanes: Pass by pass, in stream order within each: by branch point, then by number; those
            without a lane axis last.
        packs: The lanes of each pass.
        step: Optimizer steps taken, of `settings.total_steps`.
        profile: What it took so far.
    """

    def __init__(
        self,
        trainer: Trainer,
        lanes: Sequence[Lane],
        replicate: int,
        states: dict[int, LaneState] | None,
        chosen: Mapping[int, Mapping[str, Tensor]],
    ) -> None:
        self._trainer, self._settings = trainer, trainer.settings
        self._seeds = Seeds(trainer.study_seed, replicate)
        together = in_passes(lanes, trainer.backbone.anatomy, trainer.lanes_per_pass)
        saved = {**chosen, **{number: own.kept() for number, own in (states or {}).items()}}
        self._passes = [
            LanePass(trainer.backbone, trainer.task, own, self._settings, self._seeds, saved)
            for own in together
        ]
        self.lanes = [lane for each in self._passes for lane in each.pack.lanes]
        self.packs = [each.pack for each in self._passes]
        self._order = trainer.order(replicate, self._settings.total_steps)
        self._trunk = self._trunk_of(trainer.train)
        self.step = 0
        self.profile = Profile()
        self._scoring = DeviceTime(trainer.device)
        self._curve: list[tuple[int, Tensor]] = []
        self._losses: list[Tensor] = []
        if states is not None:
            for each in self._passes:
                put_state(each.pack, each.optimizer, states, each.rules)
            self.step = next(iter(states.values())).step

    @property
    def replayed(self) -> int:
        """Forward and backward passes that were replayed as CUDA graphs."""
        return sum(each.replayed for each in self._passes)

    def states(self) -> dict[int, LaneState]:
        """Every lane's state now, by trial number."""
        taken = (
            take_state(each.pack, each.optimizer, self.step, each.rules) for each in self._passes
        )
        return {number: state for states in taken for number, state in states.items()}

    def train(self, until: int, *, on_step: Callable[[int], bool] | None = None) -> bool:
        """Train up to optimizer step `until`.

        The host does not wait for the device between steps, unless `on_step` does.

        Args:
            until: At most `settings.total_steps`.
            on_step: Called after each step with the steps taken; False ends the training there.

        Returns:
            Whether `until` was reached.

        Raises:
            TrialError: Out of memory (cause `out-of-memory`).
        """
        every = max(1, self._settings.total_steps // CURVE_POINTS)
        alone = self.packs[0].running() if len(self.packs) == 1 else nullcontext()
        with alone, _memory_errors(), self._timed("train_seconds"):
            while self.step < until:
                self._losses.append(self._one_step())
                self.step += 1
                if self.step % every == 0:
                    self._close_curve()
                if on_step is not None and not on_step(self.step):
                    break
        self.profile.scoring_seconds += self._scoring.taken()
        return self.step >= until

    def _one_step(self) -> Tensor:
        """One update of every lane; their losses, [K]."""
        examples, numbers = self._trainer.train, self._order[self.step]
        width, micro = examples.width(numbers), self._settings.micro_batch_size
        weight, rows = self._trainer.task.weight(examples, numbers), len(numbers)
        total = torch.zeros(len(self.lanes), device=self._trainer.device)
        for each in self._passes:
            each.begin(self.step, self._answer_of(each))
        for start in range(0, rows, micro):
            part = numbers[start : start + micro]
            batch = examples.batch(part, width)
            draws = StepUniform(self._seeds, self.step, start, rows, self._trainer.device)
            known = self._known(batch, part, draws)
            total += torch.cat(
                [each.accumulate(batch, known, draws, weight=weight) for each in self._passes]
            )
            self.profile.tokens += batch.tokens
        for each in self._passes:
            each.update(self.step)
        self.profile.optimizer_steps += 1
        self.profile.samples += rows
        return total

    def _answer_of(self, own: LanePass) -> Answer:
        """What gives the losses that the rules of a pass ask for."""
        trainer = self._trainer

        def answer(size: int, turn: int, gains: Tensor) -> Tensor:
            rows = scoring_rows(self._seeds, len(trainer.train), size, turn)
            cache = trainer.caches.get(trainer.train)
            trunk = SharedTrunk([own.pack], cache)
            with self._scoring.running(), autocast(trainer.device, self._settings.precision):
                return scored_losses(
                    own.pack,
                    trainer.task,
                    trainer.train,
                    rows,
                    gains=gains,
                    trunk=trunk,
                    micro=self._settings.micro_batch_size,
                )

        return answer

    def scoring_seconds_per_step(self) -> float:
        """What passes that rules ask for take of a mean step; one round of each is run.

        It changes what the rules have learnt: for probes, whose lanes are thrown away.
        """
        seconds = 0.0
        for each in self._passes:
            for period in sorted(set(each.rules.periods)):
                before = self.profile.scoring_seconds
                each.rules.ask(period, self._answer_of(each))
                self.profile.scoring_seconds += self._scoring.taken()
                seconds += (self.profile.scoring_seconds - before) / period
        return seconds

    def _trunk_of(self, examples: PaddedExamples) -> SharedTrunk:
        return SharedTrunk(self.packs, self._trainer.caches.get(examples))

    def _known(self, batch: Batch, rows: np.ndarray, draws: StepUniform) -> dict[int, Tensor]:
        """What all passes share of the trunk, which drops what each of them would have dropped."""
        call = Call(training=self._settings.backbone_dropout, uniform=draws)
        with autocast(self._trainer.device, self._settings.precision):
            return self._trunk.known(batch, rows, call=call)

    def drain_curve(self) -> dict[int, list[Measurement]]:
        """Points of every lane's training loss since the last call, by trial number."""
        self._close_curve()
        points, self._curve = self._curve, []
        return {
            lane.number: [
                Measurement(step, "loss", "train", _finite(float(losses[position])))
                for step, losses in points
            ]
            for position, lane in enumerate(self.lanes)
        }

    def _close_curve(self) -> None:
        """Make a point of the losses since the last one."""
        if self._losses:
            self._curve.append((self.step, torch.stack(self._losses).mean(0)))
            self._losses = []

    def scores(self, examples: PaddedExamples) -> Tensor:
        """Every lane's scores (see `Task.scores`), float32 [K, n, m], in the data's order."""
        with _memory_errors(), autocast(self._trainer.device, self._settings.precision):
            return predict(
                self.packs,
                examples,
                keep=self._trainer.task.scores,
                trunk=self._trunk_of(examples),
            )

    def evaluate(self, examples: PaddedExamples | None = None) -> dict[int, Evaluation]:
        """Every lane on the validation examples (or others), by trial number."""
        examples = self._trainer.validation if examples is None else examples
        with self._timed("evaluation_seconds"):
            values = self._trainer.task.values(self.scores, examples, self._settings.metrics)
            active = [alive for each in self._passes for alive in each.optimizer.active.tolist()]
            reached = self._reached(examples)
        return {
            lane.number: Evaluation(
                {**own, **costs} if own and alive else {}, diverged=not (own and alive)
            )
            for lane, own, costs, alive in zip(self.lanes, values, reached, active, strict=True)
        }

    def _reached(self, examples: PaddedExamples) -> list[dict[str, float]]:
        """Costs that training brought about, of every lane; {} where none are asked for."""
        if not self._settings.density:
            return [{} for _ in self.lanes]
        with _memory_errors(), autocast(self._trainer.device, self._settings.precision):
            found = activation_densities(self.packs, examples)
        return [{DENSITY: float(density)} for density in found]

    @contextmanager
    def _timed(self, figure: str) -> Iterator[None]:
        """Add the seconds inside to a figure of the profile, the device's work included."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._trainer.device.type == "cuda":
                torch.cuda.synchronize()
            spent = getattr(self.profile, figure) + time.perf_counter() - began
            setattr(self.profile, figure, spent)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # A GPU has an error class of its own; the CPU's allocator has but a message.
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise TrialError("the device is out of memory", cause="out-of-memory") from error
        raise
