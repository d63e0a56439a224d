"""The training loop: one pack, from rung to rung, over data shared by all packs of a process."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.errors import TrialError
from autopeft.methods.base import Call
from autopeft.study.records import Measurement
from autopeft.training import metrics
from autopeft.training.batches import Batch, PaddedExamples, training_order
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.optimizer import LaneAdamW, schedule_factor
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.predict import predict
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState, put_state, take_state

CURVE_POINTS = 20
"""Points of the training-loss curve over the full budget."""

REGRESSION = "regression"


@dataclass(frozen=True)
class LoopSettings:
    """What one study's trials share.

    Attributes:
        task: `sequence-classification` or `regression`.
        metrics: Validation metrics to compute, `loss` included where wanted.
        total_steps: Optimizer steps of the full budget.
        batch_size: Examples per optimizer step and lane.
        micro_batch_size: Examples per forward pass and lane.
        lr_scheduler: `linear`, `cosine` or `constant`.
        max_grad_norm: Per lane, or None.
        precision: `fp32` or `bf16` (autocast; trained weights stay float32).
    """

    task: str
    metrics: tuple[str, ...]
    total_steps: int
    batch_size: int
    micro_batch_size: int
    lr_scheduler: str = "linear"
    max_grad_norm: float | None = 1.0
    precision: str = "fp32"


@dataclass
class Profile:
    """What a pack's training took.

    Attributes:
        optimizer_steps: Steps taken.
        samples: Examples per lane.
        tokens: Tokens per lane, padding included.
        train_seconds: In training steps, the whole pack.
        evaluation_seconds: In evaluation, the whole pack.
    """

    optimizer_steps: int = 0
    samples: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def to_dict(self, *, lanes: int, share: float) -> dict[str, Any]:
        """As stored with a trial: the pack's figures, and the trial's share of the seconds."""
        return {
            "optimizer_steps": self.optimizer_steps,
            "samples": self.samples,
            "tokens": self.tokens,
            "pack_lanes": lanes,
            "pack_train_seconds": round(self.train_seconds, 4),
            "pack_evaluation_seconds": round(self.evaluation_seconds, 4),
            "train_seconds": round(self.train_seconds * share, 4),
            "evaluation_seconds": round(self.evaluation_seconds * share, 4),
            "peak_memory_bytes": peak_memory_bytes(),
        }


def peak_memory_bytes() -> int:
    """Peak memory of this process: the GPU's where one is in use, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Evaluation:
    """One lane on the validation split.

    Attributes:
        values: By metric; empty where the lane has diverged.
        diverged: Whether weights or predictions are not finite.
        predictions: Class ids int64 [n] or values float32 [n], in the data's order.
    """

    values: Mapping[str, float]
    diverged: bool
    predictions: np.ndarray = field(repr=False)


class Trainer:
    """The persistent part: backbone and tokenised data of one study, in one process.

    Args:
        backbone: Frozen.
        data: Tokenised train and validation examples.
        settings: Shared by all trials.
        study_seed: Source of all randomness.
    """

    def __init__(
        self, backbone: Backbone, data: TaskData, settings: LoopSettings, *, study_seed: int
    ) -> None:
        self.backbone, self.settings, self.study_seed = backbone, settings, study_seed
        self.device = next(backbone.model.parameters()).device
        self.n_classes = len(data.label_names)
        outputs = 1 if settings.task == REGRESSION else self.n_classes
        self.recipe: HeadRecipe = backbone.head(outputs)
        self.train = self.padded(data.train)
        self.validation = self.padded(data.validation)

    def padded(self, examples: Examples) -> PaddedExamples:
        """Examples on the device."""
        pad = getattr(self.backbone.tokenizer, "pad_token_id", None) or 0
        return PaddedExamples(examples, pad_token_id=pad, device=self.device)

    def start(
        self,
        lanes: Sequence[Lane],
        *,
        replicate: int = 0,
        states: dict[int, LaneState] | None = None,
    ) -> "PackRun":
        """A pack of these lanes, fresh or continued from saved states."""
        with _memory_errors():
            return PackRun(self, lanes, Seeds(self.study_seed, replicate), states)


class PackRun:
    """One pack in training.

    Attributes:
        pack: The lanes.
        step: Optimizer steps taken, of `settings.total_steps`.
        profile: What it took so far.
    """

    def __init__(
        self,
        trainer: Trainer,
        lanes: Sequence[Lane],
        seeds: Seeds,
        states: dict[int, LaneState] | None,
    ) -> None:
        settings = trainer.settings
        self._trainer, self._seeds, self._settings = trainer, seeds, settings
        self.pack = Pack(trainer.backbone, trainer.recipe, lanes, seeds=seeds)
        configurations = [lane.configuration for lane in self.pack.lanes]
        self._optimizer = LaneAdamW(
            self.pack.stacked(),
            len(lanes),
            learning_rates=[c.training_value("learning_rate") for c in configurations],
            weight_decays=[c.training_value("weight_decay") for c in configurations],
            max_grad_norm=settings.max_grad_norm,
        )
        self._warmup = [
            warmup_steps(c.training_value("warmup_ratio"), settings.total_steps)
            for c in configurations
        ]
        self._order = training_order(
            trainer.train.lengths,
            batch_size=settings.batch_size,
            total_steps=settings.total_steps,
            seeds=seeds,
        )
        self.step = 0
        self.profile = Profile()
        self._curve: list[tuple[int, Tensor]] = []
        self._losses: list[Tensor] = []
        if states is not None:
            put_state(self.pack, self._optimizer, states)
            self.step = next(iter(states.values())).step

    def states(self) -> dict[int, LaneState]:
        """Every lane's state now, by trial number."""
        return take_state(self.pack, self._optimizer, self.step)

    def train(self, until: int, *, on_step: Callable[[int], bool] | None = None) -> bool:
        """Train up to optimizer step `until`.

        Args:
            until: At most `settings.total_steps`.
            on_step: Called after each step with the steps taken; False ends the training there.

        Returns:
            Whether `until` was reached.

        Raises:
            TrialError: Out of memory (cause `out-of-memory`).
        """
        every = max(1, self._settings.total_steps // CURVE_POINTS)
        with self.pack.running(), _memory_errors():
            while self.step < until:
                began = time.perf_counter()
                batch = self._trainer.train.batch(self._order[self.step])
                self._losses.append(self._one_step(batch))
                self.step += 1
                if self.step % every == 0:
                    self._close_curve()
                self.profile.train_seconds += time.perf_counter() - began
                if on_step is not None and not on_step(self.step):
                    return self.step >= until
        return True

    def _one_step(self, batch: Batch) -> Tensor:
        settings, rows = self._settings, len(batch)
        self._optimizer.zero_grad()
        total = torch.zeros(len(self.pack.lanes), device=self._trainer.device)
        for start in range(0, rows, settings.micro_batch_size):
            part = batch.rows(start, min(start + settings.micro_batch_size, rows))
            uniform = StepUniform(self._seeds, self.step, start, rows, self._trainer.device)
            with self._autocast():
                logits = self.pack(part, Call(training=True, uniform=uniform))
            losses = self._row_losses(logits.float(), part.labels).sum(dim=1) / rows
            torch.autograd.backward(losses.sum())
            total += losses.detach()
        factors = schedule_factor(
            settings.lr_scheduler, self.step, total=settings.total_steps, warmup_steps=self._warmup
        )
        self._optimizer.step(factors)
        self.profile.optimizer_steps += 1
        self.profile.samples += rows
        self.profile.tokens += batch.tokens
        return total

    def _autocast(self) -> Any:
        if self._settings.precision == "bf16":
            return torch.autocast(self._trainer.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[K, B, C] -> loss of every row, [K, B]."""
        lanes = logits.shape[0]
        if self._settings.task == REGRESSION:
            return (logits.squeeze(-1) - labels.to(logits.dtype)).square()
        flat = functional.cross_entropy(
            logits.flatten(0, 1), labels.repeat(lanes), reduction="none"
        )
        return flat.view(lanes, -1)

    def drain_curve(self) -> dict[int, list[Measurement]]:
        """Points of every lane's training loss since the last call, by trial number."""
        self._close_curve()
        points, self._curve = self._curve, []
        return {
            lane.number: [
                Measurement(step, "loss", "train", _finite(float(losses[position])))
                for step, losses in points
            ]
            for position, lane in enumerate(self.pack.lanes)
        }

    def _close_curve(self) -> None:
        """Make a point of the losses since the last one."""
        if self._losses:
            self._curve.append((self.step, torch.stack(self._losses).mean(0)))
            self._losses = []

    def predict(self, examples: PaddedExamples) -> Tensor:
        """Logits (or values) of every lane, float32 [K, n, n_outputs], in the data's order."""
        with _memory_errors(), self._autocast():
            return predict(self.pack, examples)

    def evaluate(self, examples: PaddedExamples | None = None) -> dict[int, Evaluation]:
        """Every lane on the validation examples (or others), by trial number."""
        examples = self._trainer.validation if examples is None else examples
        began = time.perf_counter()
        logits = self.predict(examples)
        losses = self._row_losses(logits, examples.labels).mean(dim=1).cpu()
        results = {
            lane.number: self._one_evaluation(position, logits, losses, examples.labels)
            for position, lane in enumerate(self.pack.lanes)
        }
        self.profile.evaluation_seconds += time.perf_counter() - began
        return results

    def _one_evaluation(
        self, position: int, logits: Tensor, losses: Tensor, labels: Tensor
    ) -> Evaluation:
        own = logits[position].cpu()
        regression = self._settings.task == REGRESSION
        predictions = (own.squeeze(-1) if regression else own.argmax(-1)).numpy()
        if not bool(torch.isfinite(own).all()) or not bool(self._optimizer.active[position]):
            return Evaluation({}, True, predictions)
        truth = labels.cpu().numpy()
        values = {
            name: float(losses[position])
            if name == "loss"
            else metrics.compute(name, predictions, truth, self._trainer.n_classes)
            for name in self._settings.metrics
        }
        return Evaluation(values, False, predictions)


def warmup_steps(ratio: float, total: int) -> int:
    """Warm-up steps of a share of the full budget, rounded up as transformers does."""
    return int(np.ceil(ratio * total))


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
