"""One label per row: classes (cross-entropy) or numbers (squared error)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.heads import HeadRecipe
from autopeft.training import metrics as qualities
from autopeft.training.batches import Batch, PaddedExamples
from autopeft.training.tasks.base import Score


class SequenceTask:
    """Classification where there are classes, regression where there are none; see `Task`.

    Args:
        recipe: The task head.
        n_classes: Classes; 0 for a regression.
    """

    def __init__(self, recipe: HeadRecipe, n_classes: int) -> None:
        self.recipe, self._n_classes = recipe, n_classes

    def weight(self, examples: PaddedExamples, rows: np.ndarray) -> int:
        """See `Task`: the number of rows."""
        return len(rows)

    def loss_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See `Task`; outputs are logits (or values) [K, B, n_outputs]."""
        return self._row_losses(outputs.float(), batch.labels).sum(dim=1)

    def divergence_sums(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        """See `Task`."""
        one, other = one.float(), other.float()
        if not self._n_classes:
            return (one - other).square().sum(dim=(1, 2))
        logs = one.log_softmax(-1), other.log_softmax(-1)
        apart = (logs[0].exp() - logs[1].exp()) * (logs[0] - logs[1])
        return 0.5 * apart.sum(dim=(1, 2))

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See `Task`: the logits (or values) themselves."""
        return outputs.float()

    def values(
        self, score: Score, examples: PaddedExamples, metrics: Sequence[str]
    ) -> list[Mapping[str, float]]:
        """See `Task`."""
        logits = score(examples)
        losses = self._row_losses(logits, examples.labels).mean(dim=1).cpu()
        truth = examples.labels.cpu().numpy()
        return [
            self._lane_values(own, float(loss), truth, metrics)
            for own, loss in zip(logits.cpu(), losses, strict=True)
        ]

    def _lane_values(
        self, logits: Tensor, loss: float, truth: np.ndarray, metrics: Sequence[str]
    ) -> Mapping[str, float]:
        if not bool(torch.isfinite(logits).all()):
            return {}
        predictions = (logits.argmax(-1) if self._n_classes else logits.squeeze(-1)).numpy()
        return {
            name: loss
            if name == "loss"
            else qualities.compute(name, predictions, truth, self._n_classes)
            for name in metrics
        }

    def _row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[K, B, n_outputs] -> loss of every row, [K, B]."""
        lanes = logits.shape[0]
        if not self._n_classes:
            return (logits.squeeze(-1) - labels.to(logits.dtype)).square()
        flat = functional.cross_entropy(
            logits.flatten(0, 1), labels.repeat(lanes), reduction="none"
        )
        return flat.view(lanes, -1)
