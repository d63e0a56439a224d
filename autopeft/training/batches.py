"""Batches: padded once, cut by length, the same for every lane.

Which examples form a batch is a pure function of the seeds; lengths are rounded up so that few
shapes occur. Examples are bucketed by length within windows, which nearly halves the tokens of
short-text data sets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from autopeft.backbone.devices import on_device
from autopeft.training.data.examples import Examples
from autopeft.training.lanes.seeds import Seeds

WINDOW = 50
"""Batches per length-sorted window: transformers' own choice for grouping by length."""

LENGTH_STEPS = {"cpu": 1}
DEFAULT_LENGTH_STEP = 8
"""Lengths are rounded up to a multiple of this: few shapes to capture, aligned rows. A CPU gains
by neither, and short texts lose a quarter of its work to it (TREC-6: 1.30 tokens for each real
one at 8, 1.04 at 1)."""

TARGET_STEP = 32
"""The number of labelled positions is rounded up to a multiple of this: few shapes."""

LENGTHS_PER_OCTAVE, TARGETS_PER_OCTAVE = 8, 4
"""Where steps are captured, at most so many sizes lie between a power of two and the next: padding
of up to an eighth, and of up to a quarter of the labelled positions, for few shapes."""


def rounded(n: int, step: int, per_octave: int = 0) -> int:
    """n > 0 rounded up to a multiple of `step`, and to one of few sizes per octave (0 = any)."""
    octave = 1 << (n.bit_length() - 1)
    unit = max(step, octave // per_octave) if per_octave else step
    return -(-n // unit) * unit


@dataclass(frozen=True)
class Targets:
    """The labelled positions of a batch of token rows: where a next token is predicted.

    M is the number of positions, rounded up; those past `count` repeat the first one at weight 0.

    Attributes:
        positions: int64 [M], into the batch's positions in one row after the other, [B * T].
        tokens: int64 [M], the token that each position predicts.
        rows: int64 [M], the row of each position.
        weights: float32 [M], 1 where a position counts.
        count: Positions that count.
    """

    positions: Tensor
    tokens: Tensor
    rows: Tensor
    weights: Tensor
    count: int


_TARGET_TENSORS = ("positions", "tokens", "rows", "weights")


@dataclass(frozen=True)
class Batch:
    """Rows of one batch.

    Attributes:
        inputs: Keyword arguments of the base model, each [B, T].
        mask: [B, T], 1 where a token is real.
        labels: int64 [B] (classes) or float32 [B].
        targets: What a language model is to predict, or None.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    labels: Tensor
    targets: Targets | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.mask.numel()

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        targets = self.targets
        own = [] if targets is None else [getattr(targets, name) for name in _TARGET_TENSORS]
        return [*self.inputs.values(), self.mask, self.labels, *own]

    def clone(self) -> "Batch":
        """A batch of the same contents in tensors of its own."""
        targets = self.targets
        if targets is not None:
            own = {name: getattr(targets, name).clone() for name in _TARGET_TENSORS}
            targets = replace(targets, **own)
        inputs = {name: tensor.clone() for name, tensor in self.inputs.items()}
        return Batch(inputs, self.mask.clone(), self.labels.clone(), targets)

    def copy_(self, other: "Batch") -> None:
        """Take over the contents of a batch of the same shapes, in place."""
        for mine, theirs in zip(self.tensors, other.tensors, strict=True):
            mine.copy_(theirs, non_blocking=True)


class PaddedExamples:
    """Examples as one padded matrix on the device, cut to each batch's length.

    Nothing here waits for the device: which rows form a batch is known on the host, and what a
    batch needs beside the matrix goes over without a synchronisation.

    Args:
        examples: Tokenised examples.
        pad_token_id: Fills the right-hand end.
        device: Where batches are wanted.

    Attributes:
        lengths: Tokens of each example, int64 [n].
        choices: Their candidate answers, or None.
    """

    def __init__(self, examples: Examples, *, pad_token_id: int, device: torch.device) -> None:
        self.lengths = np.array([len(ids) for ids in examples.token_ids])
        self.device = device
        self.examples = examples
        self._step = LENGTH_STEPS.get(device.type, DEFAULT_LENGTH_STEP)
        captured = device.type == "cuda"
        self._lengths_per_octave = LENGTHS_PER_OCTAVE if captured else 0
        self._targets_per_octave = TARGETS_PER_OCTAVE if captured else 0
        self._ids = _padded(examples.token_ids, pad_token_id, self._step).to(device)
        types = examples.token_types
        self._types = None if types is None else _padded(types, 0, self._step).to(device)
        self._labels = torch.from_numpy(np.array(examples.labels)).to(device)
        self._row_lengths = torch.from_numpy(self.lengths).to(device)
        self._steps = torch.arange(self._ids.shape[1], device=device)
        self.choices = (
            None
            if examples.choices is None
            else PaddedExamples(
                examples.choices.examples, pad_token_id=pad_token_id, device=device
            )
        )
        self._targets = (
            None
            if examples.targets is None
            else [np.flatnonzero(mask) for mask in examples.targets]
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def labels(self) -> Tensor:
        """All labels."""
        return self._labels

    def width(self, rows: np.ndarray) -> int:
        """The length that a batch of these rows is padded to: its longest, rounded up."""
        longest = int(self.lengths[rows].max())
        return min(rounded(longest, self._step, self._lengths_per_octave), self._ids.shape[1])

    def n_targets(self, rows: np.ndarray) -> int:
        """Tokens that a language model is to predict in these rows."""
        return 0 if self._targets is None else sum(len(self._targets[row]) for row in rows)

    def batch(self, rows: np.ndarray, width: int | None = None) -> Batch:
        """The batch of these rows, padded to `width`, by default that of its longest."""
        width = self.width(rows) if width is None else width
        index = on_device(rows, self.device)
        mask = (self._steps[:width] < self._row_lengths[index].unsqueeze(1)).long()
        inputs = {"input_ids": self._ids[index, :width], "attention_mask": mask}
        if self._types is not None:
            inputs["token_type_ids"] = self._types[index, :width]
        return Batch(inputs, mask, self._labels[index], self._targets_of(rows, width))

    def _targets_of(self, rows: np.ndarray, width: int) -> Targets | None:
        if self._targets is None:
            return None
        own = [self._targets[row] for row in rows]
        count = sum(len(columns) for columns in own)
        size = rounded(max(1, count), TARGET_STEP, self._targets_per_octave)
        where = np.zeros((3, size), dtype=np.int64)
        numbers = np.repeat(np.arange(len(rows)), [len(columns) for columns in own])
        columns = np.concatenate(own)
        where[:, :count] = numbers * width + columns - 1, columns, numbers
        where[:, count:] = where[:, :1]
        positions, column, number = on_device(where, self.device)
        tokens = self._ids[on_device(rows, self.device)[number], column]
        weights = (torch.arange(where.shape[1], device=self.device) < count).float()
        return Targets(positions, tokens, number, weights, count)


def _padded(rows: Sequence[np.ndarray], fill: int, step: int) -> Tensor:
    longest = max(len(row) for row in rows)
    width = math.ceil(longest / step) * step
    matrix = np.full((len(rows), width), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        matrix[index, : len(row)] = row
    return torch.from_numpy(matrix)


def training_order(
    lengths: np.ndarray, *, batch_size: int, total_steps: int, seeds: Seeds
) -> list[np.ndarray]:
    """Row indices of every training batch, `total_steps` of them.

    Each epoch visits every row once: a seeded permutation, sorted by length within windows of
    `WINDOW` batches, whose batches are then shuffled.
    """
    order: list[np.ndarray] = []
    epoch = 0
    while len(order) < total_steps:
        order.extend(_epoch(lengths, batch_size, seeds, epoch))
        epoch += 1
    return order[:total_steps]


def _epoch(lengths: np.ndarray, batch_size: int, seeds: Seeds, epoch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seeds.seed("order", step=epoch))
    rows = rng.permutation(len(lengths))
    window = WINDOW * batch_size
    batches = []
    for start in range(0, len(rows), window):
        part = rows[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_order(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row indices of evaluation batches, by length."""
    rows = np.argsort(lengths, kind="stable")
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Row indices of batches by length, each of at most so many tokens, padding included.

    A row that is longer is a batch by itself.
    """
    rows = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end - start + 1) * lengths[rows[end]] > tokens:
            batches.append(rows[start:end])
            start = end
    return batches


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(n_rows / batch_size)
