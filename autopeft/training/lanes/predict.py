"""Packed prediction: every lane on the same examples, in one pass over them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import Batch, PaddedExamples, token_batches
from autopeft.training.lanes.pack import Pack
from autopeft.training.lanes.trunk import SharedTrunk
from autopeft.training.step_shape import evaluation_tokens


@torch.no_grad()
def predict(
    packs: Sequence[Pack],
    examples: PaddedExamples,
    *,
    keep: Callable[[Tensor, Batch], Tensor] = lambda outputs, batch: outputs.float(),
    trunk: SharedTrunk | None = None,
) -> Tensor:
    """What is kept of every lane's outputs, [K, n, ...], in the data's order.

    Args:
        packs: The lanes, in packs that run one after the other over each batch.
        examples: n of them.
        keep: Makes [k, B, ...] of a pass's outputs and batch; by default the outputs, float32.
        trunk: What the packs share; by default nothing.
    """
    lanes = max(len(pack.lanes) for pack in packs)
    order = token_batches(examples.lengths, evaluation_tokens(examples.device.type) // lanes)
    trunk = trunk or SharedTrunk(packs)
    parts = []
    for numbers in order:
        batch = examples.batch(numbers)
        known = trunk.known(batch, numbers)
        outputs = []
        for pack in packs:
            with pack.running():
                outputs.append(keep(pack(batch, SILENT, known), batch))
        parts.append(torch.cat(outputs))
    inverse = torch.from_numpy(np.argsort(np.concatenate(order)))
    return torch.cat(parts, dim=1)[:, inverse.to(examples.device)]
