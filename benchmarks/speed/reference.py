"""One trial with HF `Trainer` and `peft`, set up as a sensible user would.

The model is in memory already; each trial gets a fresh copy (not timed) and a fresh `peft` wrap.
Nothing is logged, saved or reported. Batches are padded to their longest row.
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from autopeft.configuration import Configuration
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.state import LaneState
from benchmarks.speed.measuring import Measured, Stopwatch
from benchmarks.speed.nearest import lora_config
from benchmarks.speed.shapes import Subject

EVALUATION_BATCH = 64
IGNORED = -100
"""The label that transformers' losses leave out."""


@dataclass(frozen=True)
class Recipe:
    """How the reference trains.

    Attributes:
        epochs: Passes over the training rows.
        batch_size: Rows per step.
        dropout: Whether the model's own dropout is on, as in its configuration.
        by_length: Whether rows of similar length are batched, by Trainer's own sampler.
        bf16: Autocast to bfloat16.
        max_steps: Ends the training there; -1 for all epochs.
        uncounted_steps: Steps at the start that are not timed.
        order: Row indices of every batch, in place of the Trainer's random order.
        start: Initial weights of adapter and head, in place of `peft`'s own.
        evaluate: Whether to evaluate once at the end.
    """

    epochs: int = 3
    batch_size: int = 32
    dropout: bool = True
    by_length: bool = False
    bf16: bool = False
    max_steps: int = -1
    uncounted_steps: int = 0
    order: Sequence[np.ndarray] | None = field(default=None, repr=False)
    start: LaneState | None = field(default=None, repr=False)
    evaluate: bool = True


def run_reference(
    subject: Subject, data: TaskData, configuration: Configuration, recipe: Recipe
) -> Measured:
    """Wrap, train and evaluate one trial."""
    task_model = subject.fresh_task_model(dropout=recipe.dropout)
    train, validation = _Rows(data.train), _Rows(data.validation)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch(subject.device)
        model = _wrapped(subject, task_model, configuration, recipe)
        counted = _Counted(watch, recipe.uncounted_steps)
        trainer = _Trainer(
            model,
            _arguments(subject, configuration, recipe, folder),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=_collator(subject),
            compute_metrics=_accuracy,
            callbacks=[counted],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.order = recipe.order
        setup = watch.lap()
        trainer.train()
        trained = watch.lap()
        found = trainer.evaluate() if recipe.evaluate else {}
        evaluation = watch.lap()
    return Measured(
        setup=(0.0, 0.0) if recipe.uncounted_steps else setup,
        train=trained,
        evaluation=evaluation if recipe.evaluate else (0.0, 0.0),
        samples=sum(trainer.rows[recipe.uncounted_steps :]),
        details={
            "accuracy": found.get("eval_accuracy"),
            "losses": [round(float(loss), 6) for loss in torch.stack(trainer.losses).cpu()],
        },
    )


def _wrapped(
    subject: Subject, task_model: Any, configuration: Configuration, recipe: Recipe
) -> nn.Module:
    config = lora_config(
        configuration,
        subject.backbone.anatomy,
        prefix=task_model.base_model_prefix,
        causal=not subject.n_classes,
    )
    torch.manual_seed(0)
    model: nn.Module = get_peft_model(task_model, config)
    if recipe.start is not None:
        put_weights(model, recipe.start, subject)
    return model


@torch.no_grad()
def put_weights(model: nn.Module, state: LaneState, subject: Subject) -> None:
    """Copy a LoRA lane's weights and head into a wrapped task model."""
    named, anatomy = dict(model.named_parameters()), subject.backbone.anatomy
    steps = subject.backbone.head(subject.n_classes).steps
    for name, tensor in state.weights().items():
        kind, *rest = name.split(".")
        if kind == "lora":
            layer, role, matrix = rest
            module = anatomy.site(int(layer), role).module
            ending = f".{module}.lora_{matrix}.default.weight"
        else:
            step, _, what = rest[0].partition("_")
            ending = f".{steps[int(step)].name}.modules_to_save.default.{what}"
        target = next(parameter for key, parameter in named.items() if key.endswith(ending))
        target.copy_(tensor.T if tensor.dim() == 2 else tensor)


def _arguments(
    subject: Subject, configuration: Configuration, recipe: Recipe, folder: str
) -> TrainingArguments:
    on_cpu = subject.device.type == "cpu"
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        learning_rate=configuration.training_value("learning_rate"),
        weight_decay=configuration.training_value("weight_decay"),
        warmup_steps=configuration.training_value("warmup_ratio"),
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        bf16=recipe.bf16,
        train_sampling_strategy="group_by_length" if recipe.by_length else "random",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
    )


class _Trainer(Trainer):  # type: ignore[misc]
    """HF's Trainer, which keeps its losses (a reference each) and can be told its batches."""

    order: Sequence[np.ndarray] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.losses: list[Tensor] = []
        self.rows: list[int] = []

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        """The loss as ever; in training, kept with the number of rows."""
        rows = len(inputs["labels"])
        found = super().compute_loss(model, inputs, *args, **options)
        loss = found[0] if isinstance(found, tuple) else found
        if loss.requires_grad:
            self.losses.append(loss.detach())
            self.rows.append(rows)
        return found

    def get_train_dataloader(self) -> Any:
        """The Trainer's own, or one that follows `order` (all epochs in one)."""
        if self.order is None:
            return super().get_train_dataloader()
        batches = [batch.tolist() for batch in self.order]
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)


class _Counted(TrainerCallback):  # type: ignore[misc]
    """Starts the watch anew once the uncounted steps are over."""

    def __init__(self, watch: Stopwatch, uncounted: int) -> None:
        self._watch, self._uncounted = watch, uncounted

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A lap that nobody reads."""
        if state.global_step == self._uncounted:
            self._watch.lap()


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as a Trainer reads them: a class each, or a label per token of the answer."""

    def __init__(self, examples: Examples) -> None:
        self._rows = [
            {"input_ids": ids.tolist(), "labels": int(label)}
            for ids, label in zip(examples.token_ids, examples.labels, strict=True)
        ]
        for row, types in zip(self._rows, examples.token_types or (), strict=False):
            row["token_type_ids"] = types.tolist()
        for row, answer in zip(self._rows, examples.targets or (), strict=False):
            row["labels"] = np.where(answer, row["input_ids"], IGNORED).tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


def _collator(subject: Subject) -> Any:
    """transformers' own where there is a tokenizer, else the same without one."""
    tokenizer = subject.backbone.tokenizer
    if tokenizer is None:
        return _collate
    return (
        DataCollatorWithPadding(tokenizer)
        if subject.n_classes
        else DataCollatorForSeq2Seq(tokenizer)
    )


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    ids = _padded([row["input_ids"] for row in rows], 0)
    mask = _padded([[1] * len(row["input_ids"]) for row in rows], 0)
    labels = [row["labels"] for row in rows]
    answers = isinstance(labels[0], list)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": _padded(labels, IGNORED) if answers else torch.tensor(labels),
    }


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def _accuracy(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions
    return {"accuracy": float((np.argmax(logits, -1) == prediction.label_ids).mean())}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks on stderr, where the progress goes."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.set_verbosity(before)
