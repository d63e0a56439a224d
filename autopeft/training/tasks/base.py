"""What the loop needs of a task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from torch import Tensor

from autopeft.backbone.heads import HeadRecipe
from autopeft.training.batches import Batch, PaddedExamples

Score: TypeAlias = Callable[[PaddedExamples], Tensor]
"""Every lane's scores of examples, [K, n, m], in the data's order."""


class Task(Protocol):
    """One kind of labels: its head, its loss, and its metrics.

    Notation: K lanes, B rows of a batch, n examples, m scores kept of each.
    """

    @property
    def recipe(self) -> HeadRecipe:
        """The head that lanes train, if any."""

    def weight(self, examples: PaddedExamples, rows: np.ndarray) -> int:
        """What the loss of these rows is a mean over: rows, or the tokens to be predicted."""

    def loss_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Every lane's loss summed over the batch, float32 [K].

        Args:
            outputs: What `Pack` gives.
            batch: The same rows.
        """

    def divergence_sums(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        """How far apart two outputs of the same rows are, summed like the loss, float32 [k].

        Symmetric Kullback-Leibler divergences, half of both directions, of what is predicted;
        squared differences of values. Differentiable with respect to both.

        Args:
            one: What `Pack` gives, of any lanes.
            other: Likewise, of other draws.
            batch: The same rows.
        """

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What has to be kept of each row to measure it later, float32 [K, B, m]."""

    def values(
        self, score: Score, examples: PaddedExamples, metrics: Sequence[str]
    ) -> list[Mapping[str, float]]:
        """Metrics by name for every lane, in stream order; {} where its scores are not finite."""
