"""Answers in token rows: a causal language model learns to continue a prompt.

The loss is the mean negative log-likelihood of the answers' tokens over the whole batch, as HF
`Trainer` computes it; prompts are read, not learnt.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.lm_head import LmHead
from autopeft.training.answer_metrics import AnswerScores, compute_answers
from autopeft.training.batches import Batch, PaddedExamples, Targets
from autopeft.training.tasks.base import Score
from autopeft.training.tasks.token_loss import token_divergences, token_losses

NLL, HITS, COUNT = range(3)
"""Scores of a row: summed negative log-likelihood, likeliest tokens, tokens."""


class CausalTask:
    """Next tokens of answers; see `Task`. Lanes train no head.

    Args:
        recipe: All hidden states, without a step.
        head: The backbone's own language-model head.
    """

    def __init__(self, recipe: HeadRecipe, head: LmHead) -> None:
        self.recipe, self._head = recipe, head

    def weight(self, examples: PaddedExamples, rows: np.ndarray) -> int:
        """See `Task`: the number of tokens to be predicted, at least 1."""
        return max(1, examples.n_targets(rows))

    def loss_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See `Task`; outputs are hidden states [K, B, T, d]."""
        losses, _ = self._token_losses(outputs, _targets(batch))
        return losses.sum(dim=1)

    def divergence_sums(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        """See `Task`: at the labelled positions, over the vocabulary."""
        targets = _targets(batch)
        first, second = (
            hidden.flatten(1, 2).index_select(1, targets.positions).flatten(0, 1)
            for hidden in (one, other)
        )
        apart = token_divergences(first, second, self._head).view(one.shape[0], -1)
        return (apart * targets.weights).sum(dim=1)

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See `Task`: `NLL`, `HITS` and `COUNT` of every row."""
        targets = _targets(batch)
        losses, hits = self._token_losses(outputs, targets)
        kept = torch.stack([losses.float(), hits, targets.weights.expand_as(hits)], dim=2)
        rows = kept.new_zeros(outputs.shape[0], len(batch), 3)
        return rows.index_add_(1, targets.rows, kept)

    def _token_losses(self, hidden: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Weighted losses and hits of every labelled position, [K, M] each."""
        lanes = hidden.shape[0]
        chosen = hidden.flatten(1, 2).index_select(1, targets.positions)
        losses, hits = token_losses(chosen.flatten(0, 1), targets.tokens.repeat(lanes), self._head)
        weights = targets.weights
        return losses.view(lanes, -1) * weights, hits.view(lanes, -1).float() * weights

    def values(
        self, score: Score, examples: PaddedExamples, metrics: Sequence[str]
    ) -> list[Mapping[str, float]]:
        """See `Task`."""
        rows = score(examples).double().cpu().numpy()
        candidates: Sequence[np.ndarray | None] = [None] * len(rows)
        if examples.choices is not None and "choice_accuracy" in metrics:
            candidates = list(score(examples.choices).double().cpu().numpy())
        return [
            _lane_values(own, examples, candidate, metrics)
            for own, candidate in zip(rows, candidates, strict=True)
        ]


def _targets(batch: Batch) -> Targets:
    if batch.targets is None:
        raise ValueError("these examples have no answers")
    return batch.targets


def _lane_values(
    rows: np.ndarray,
    examples: PaddedExamples,
    candidates: np.ndarray | None,
    metrics: Sequence[str],
) -> Mapping[str, float]:
    seen = rows if candidates is None else np.concatenate([rows, candidates])
    if not np.isfinite(seen).all():
        return {}
    likelihoods = None if candidates is None else -candidates[:, NLL]
    scores = AnswerScores(-rows[:, NLL], rows[:, HITS], rows[:, COUNT], likelihoods)
    choices = examples.examples.choices
    return {name: compute_answers(name, scores, choices) for name in metrics}
