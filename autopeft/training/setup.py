"""From the blocks of a study or configuration file to a trainer: load backbone and data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autopeft.backbone.loading import Backbone, BackboneRequest, load_backbone
from autopeft.study.blocks import ModelBlock, TrainingBlock
from autopeft.study.data_block import DataBlock
from autopeft.study.metrics import METRICS
from autopeft.training import metrics
from autopeft.training.activations import CacheBudget
from autopeft.training.answer_metrics import constant_answers
from autopeft.training.batches import steps_per_epoch
from autopeft.training.data.examples import TaskData
from autopeft.training.data.request import DataRequest, Limits, Splits, Task
from autopeft.training.data.tokenising import load_task_data
from autopeft.training.loop import Trainer
from autopeft.training.precision import forbid_tf32
from autopeft.training.settings import LoopSettings


@dataclass(frozen=True)
class Materials:
    """What trials are trained with.

    Attributes:
        trainer: Backbone, tokenised data and settings.
        data: The tokenised data.
        total_steps: Optimizer steps of the full budget.
    """

    trainer: Trainer
    data: TaskData
    total_steps: int

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone."""
        return self.trainer.backbone

    @property
    def head_params(self) -> int:
        """Parameters of the task head."""
        return self.trainer.recipe.n_parameters

    @property
    def n_vocabulary(self) -> int:
        """Tokens that the model may predict; 0 where it reads none."""
        return int(getattr(self.backbone.config.get_text_config(), "vocab_size", 0))

    @property
    def train_tokens(self) -> int:
        """Real tokens of a full trial, by the mean length of its examples."""
        train, settings = self.data.train, self.trainer.settings
        mean = train.n_tokens / len(train)
        rows = self.total_steps * min(settings.batch_size, len(train))
        return round(mean * rows)


def full_budget_steps(training: TrainingBlock, n_train: int) -> int:
    """Optimizer steps of a trial that is not stopped."""
    return training.max_steps or training.epochs * steps_per_epoch(n_train, training.batch_size)


def device_of(devices: str) -> torch.device:
    """The torch device behind `execution.devices`."""
    return torch.device(device_name(devices))


def with_settings(materials: Materials, **changes: Any) -> Materials:
    """The same materials, training with other `LoopSettings`."""
    trainer = materials.trainer
    settings = replace(trainer.settings, **changes)
    if trainer.settings == settings:
        return materials
    other = Trainer(trainer.backbone, materials.data, settings, study_seed=trainer.study_seed)
    return replace(materials, trainer=other)


def with_backbone(materials: Materials, backbone: Backbone) -> Materials:
    """The same materials, with another account of the same weights: an anatomy that knows more."""
    trainer = materials.trainer
    other = Trainer(backbone, materials.data, trainer.settings, study_seed=trainer.study_seed)
    return replace(materials, trainer=other)


def device_name(devices: str) -> str:
    """The first torch device behind `execution.devices`: auto takes cuda, then mps, then cpu."""
    if devices != "auto":
        return devices.split(",", maxsplit=1)[0]
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_names(devices: str) -> list[str]:
    """Every torch device behind `execution.devices`: cuda and auto take every GPU."""
    if "," not in devices and device_name(devices) == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [device_name("auto")] if devices == "auto" else devices.split(",")


def backbone_request(model: ModelBlock, *, device: str = "cpu") -> BackboneRequest:
    """What a model block asks for."""
    return BackboneRequest(
        name_or_path=model.name_or_path,
        revision=model.revision,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        sites=model.sites,
        task=model.task,
        device=device,
        allow_pickle=model.allow_pickle,
        quantization=model.quantization,
    )


def data_request(data: DataBlock, *, task: Task, seed: int) -> DataRequest:
    """What a data block asks for."""
    return DataRequest(
        source=data.source,
        text=data.text or (),
        label=data.label or "",
        task=task,
        config=data.config,
        revision=data.revision,
        format=data.format,
        prompt=data.prompt or "",
        completion=data.completion or "",
        messages=data.messages or "",
        choices=data.choices,
        splits=Splits(data.splits.train, data.splits.validation, data.splits.test),
        limit=Limits(data.limit.train, data.limit.validation),
        max_length=data.max_length,
        seed=seed,
    )


def load_materials(
    model: ModelBlock,
    data: DataBlock,
    training: TrainingBlock,
    *,
    quality: str,
    seed: int,
    device: str,
    output_dir: Path,
    cache: CacheBudget | None = None,
) -> Materials:
    """Load backbone and data; the test split is not opened.

    A precision of "auto" loads as fp32, and activations are kept unless they are to be recomputed
    (see `with_settings`); TF32 is off in either case.

    Args:
        model: Which backbone, for which task.
        data: Which rows.
        training: How long and how.
        quality: The quality metric; validation loss is measured beside it.
        seed: The study's seed.
        device: A torch device's name.
        output_dir: Where converted data go.
        cache: How much of the frozen activations may be kept; None keeps none.

    Raises:
        BackboneError: The model cannot be loaded or understood.
        DataError: All faults of the data.
    """
    forbid_tf32()
    backbone = load_backbone(backbone_request(model, device=device))
    request = data_request(data, task=model.task, seed=seed)
    task_data = load_task_data(request, backbone.tokenizer, output_dir=output_dir)
    total = full_budget_steps(training, len(task_data.train))
    settings = LoopSettings(
        task=model.task,
        metrics=tuple(
            dict.fromkeys(
                [quality, *extra_metrics(model.task, choices=data.choices is not None), "loss"]
            )
        ),
        total_steps=total,
        batch_size=training.batch_size,
        micro_batch_size=training.batch_size
        if training.micro_batch_size == "auto"
        else training.micro_batch_size,
        lr_scheduler=training.lr_scheduler,
        max_grad_norm=training.max_grad_norm,
        precision="fp32" if training.precision == "auto" else training.precision,
        gradient_checkpointing=training.gradient_checkpointing is True,
        backbone_dropout=training.backbone_dropout,
        cache=cache or CacheBudget(),
    )
    trainer = Trainer(backbone, task_data, settings, study_seed=seed)
    return Materials(trainer, task_data, total)


def extra_metrics(task: str, *, choices: bool = False) -> Sequence[str]:
    """Every quality metric of a task: measuring them all costs nothing beside the forward.

    Args:
        task: The study's.
        choices: Whether the data give candidate answers: to compare them takes a forward of its
            own, but they are given for nothing else.
    """
    return [
        name
        for name, metric in METRICS.items()
        if metric.kind == "quality" and metric.fits(task) and (choices or not metric.needs_choices)
    ]


def constant_quality(quality: str, data: TaskData, *, n_vocabulary: int = 0) -> float:
    """The quality metric's value for the constant predictor, on validation.

    Args:
        quality: The metric.
        data: What a study trains and validates on.
        n_vocabulary: Tokens that the model may predict, where answers are learnt.
    """
    if data.train.targets is not None:
        return constant_answers(quality, data.train, data.validation, n_vocabulary=n_vocabulary)
    return metrics.constant_value(
        quality, data.train.labels, data.validation.labels, len(data.label_names)
    )
