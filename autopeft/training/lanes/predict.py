"""Packed prediction: every lane on the same examples, in one pass over them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autopeft.methods.base import Call
from autopeft.training.batches import PaddedExamples, evaluation_order
from autopeft.training.lanes.pack import Pack

EVALUATION_ROWS = 256
"""Rows of all lanes together in one batch."""


@torch.no_grad()
def predict(pack: Pack, examples: PaddedExamples) -> Tensor:
    """Logits (or values) of every lane, float32 [K, n, n_outputs], in the data's order."""
    batch_size = max(8, EVALUATION_ROWS // len(pack.lanes))
    order = evaluation_order(examples.lengths, batch_size)
    call = Call(training=False, uniform=_no_draws)
    with pack.running():
        parts = [pack(examples.batch(rows), call).float() for rows in order]
    inverse = torch.from_numpy(np.argsort(np.concatenate(order)))
    return torch.cat(parts, dim=1)[:, inverse.to(pack.device)]


def _no_draws(name: str, shape: Sequence[int]) -> Tensor:
    raise RuntimeError(f"{name} drew random numbers of shape {tuple(shape)} in evaluation")
