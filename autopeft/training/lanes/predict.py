"""Packed prediction: every lane on the same examples, in one pass over them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from autopeft.methods.base import Call
from autopeft.training.activations import ActivationCache
from autopeft.training.batches import Batch, PaddedExamples, evaluation_order
from autopeft.training.lanes.pack import Pack
from autopeft.training.memory import EVALUATION_TOKENS


@torch.no_grad()
def predict(
    pack: Pack,
    examples: PaddedExamples,
    *,
    keep: Callable[[Tensor, Batch], Tensor] = lambda outputs, batch: outputs.float(),
    cache: ActivationCache | None = None,
) -> Tensor:
    """What is kept of every lane's outputs, [K, n, ...], in the data's order.

    Args:
        pack: The lanes, not `running`.
        examples: n of them.
        keep: Makes [K, B, ...] of a pass's outputs and batch; by default the outputs, float32.
        cache: Of these examples' frozen activations.
    """
    longest = int(examples.lengths.max())
    batch_size = max(1, EVALUATION_TOKENS // (len(pack.lanes) * longest))
    order = evaluation_order(examples.lengths, batch_size)
    call = Call(training=False, uniform=_no_draws)
    parts = []
    with pack.running():
        for numbers in order:
            batch = examples.batch(numbers)
            known = {} if cache is None else cache.known(pack, numbers)
            parts.append(keep(pack(batch, call, known), batch))
    inverse = torch.from_numpy(np.argsort(np.concatenate(order)))
    return torch.cat(parts, dim=1)[:, inverse.to(pack.device)]


def _no_draws(name: str, shape: Sequence[int]) -> Tensor:
    raise RuntimeError(f"{name} drew random numbers of shape {tuple(shape)} in evaluation")
