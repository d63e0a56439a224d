"""Batches: padded once, cut by length, the same for every lane.

Which examples form a batch is a pure function of the seeds; lengths are rounded up so that few
shapes occur. Examples are bucketed by length within windows, which nearly halves the tokens of
short-text data sets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autopeft.training.data.examples import Examples
from autopeft.training.lanes.seeds import Seeds

WINDOW = 50
"""Batches per length-sorted window: transformers' own choice for grouping by length."""

LENGTH_STEP = 8
"""Lengths are rounded up to a multiple of this: few shapes, aligned rows."""


@dataclass(frozen=True)
class Batch:
    """Rows of one batch.

    Attributes:
        inputs: Keyword arguments of the base model, each [B, T].
        mask: [B, T], 1 where a token is real.
        labels: int64 [B] (classes) or float32 [B].
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.mask.numel()

    def rows(self, start: int, stop: int) -> "Batch":
        """A micro-batch: some rows at the same length."""
        part = slice(start, stop)
        inputs = {name: tensor[part] for name, tensor in self.inputs.items()}
        return Batch(inputs, self.mask[part], self.labels[part])


class PaddedExamples:
    """Examples as one padded matrix on the device, cut to each batch's length.

    Args:
        examples: Tokenised examples.
        pad_token_id: Fills the right-hand end.
        device: Where batches are wanted.
    """

    def __init__(self, examples: Examples, *, pad_token_id: int, device: torch.device) -> None:
        self.lengths = np.array([len(ids) for ids in examples.token_ids])
        self._ids = _padded(examples.token_ids, pad_token_id).to(device)
        self._types = (
            None if examples.token_types is None else _padded(examples.token_types, 0).to(device)
        )
        self._labels = torch.from_numpy(np.array(examples.labels)).to(device)
        self._row_lengths = torch.from_numpy(self.lengths).to(device)
        self._steps = torch.arange(self._ids.shape[1], device=device)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def labels(self) -> Tensor:
        """All labels."""
        return self._labels

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of these rows, padded to its longest, rounded up."""
        longest = int(self.lengths[rows].max())
        width = min(math.ceil(longest / LENGTH_STEP) * LENGTH_STEP, self._ids.shape[1])
        index = torch.from_numpy(rows).to(self._ids.device)
        mask = (self._steps[:width] < self._row_lengths[index].unsqueeze(1)).long()
        inputs = {"input_ids": self._ids[index, :width], "attention_mask": mask}
        if self._types is not None:
            inputs["token_type_ids"] = self._types[index, :width]
        return Batch(inputs, mask, self._labels[index])


def _padded(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    longest = max(len(row) for row in rows)
    width = math.ceil(longest / LENGTH_STEP) * LENGTH_STEP
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


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(n_rows / batch_size)
