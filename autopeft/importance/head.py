"""The task's loss on the frozen backbone alone, and the head that it is taken through.

No lane takes part: the base model runs as it is, so that taps see its maps' own inputs and
gradients (a pack would run what has no trainable site without gradients).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from autopeft.backbone.heads import pool_rows
from autopeft.backbone.loading import Backbone
from autopeft.importance.settings import Head
from autopeft.training.batches import Batch
from autopeft.training.lanes.heads import LaneHead
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.tasks import Task

FIT_STEPS = 100
FIT_LEARNING_RATE = 1e-2
"""A head on a few hundred rows of fixed features: full-batch AdamW; a second on a CPU."""

SEEDS = Seeds(0)
"""The same initial head for every study, so that all of them can share one measurement."""


class TaskLoss:
    """The task's loss through one head.

    Args:
        backbone: Frozen.
        task: Gives the recipe and the loss.

    Attributes:
        head: The head's steps; nothing to train where the recipe has none.
    """

    def __init__(self, backbone: Backbone, task: Task) -> None:
        self._backbone, self._task = backbone, task
        parameter = next(backbone.model.parameters())
        std = getattr(backbone.config, "initializer_range", 0.02)
        self.head = LaneHead(task.recipe, 1, SEEDS, std=std).to(parameter.device)
        if parameter.dtype == torch.float64:
            self.head.double()
        self.head.requires_grad_(False)

    def summed(self, batch: Batch) -> Tensor:
        """The loss summed over the batch's rows (or tokens), a scalar."""
        loss: Tensor = self._task.loss_sums(self.head(self.pooled(batch)), batch).sum()
        return loss

    def pooled(self, batch: Batch) -> Tensor:
        """What the head reads: [1, B, d], or [1, B, T, d] where it reads all tokens."""
        model: Any = self._backbone.model
        out, pool = model(**batch.inputs), self._task.recipe.pool
        if pool == "pooler":
            pooled: Tensor = out.pooler_output
        elif pool == "all":
            pooled = out.last_hidden_state
        else:
            pooled = pool_rows(out.last_hidden_state, batch.mask, pool)
        return pooled.unsqueeze(0)

    def prepare(self, head: Head, batches: Iterable[Batch]) -> None:
        """Fit the head to these batches, where it is to be fitted and there is one."""
        if head == "initial" or not self._task.recipe.steps:
            return
        with torch.no_grad():
            read = [(self.pooled(batch), batch.labels) for batch in batches]
        features, labels = zip(*read, strict=True)
        together = torch.cat(labels)
        rows = Batch({}, together.new_ones(len(together), 1), together)
        self._fit(torch.cat(features, dim=1), rows)

    def _fit(self, features: Tensor, rows: Batch) -> None:
        self.head.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=FIT_LEARNING_RATE, weight_decay=0.0
        )
        for _ in range(FIT_STEPS):
            optimizer.zero_grad()
            loss = self._task.loss_sums(self.head(features), rows).sum() / len(rows)
            torch.autograd.backward(loss)
            optimizer.step()
        self.head.requires_grad_(False)
