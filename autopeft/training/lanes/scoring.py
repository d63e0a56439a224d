"""Forward passes that rules ask for: mean losses on training examples, in eval mode."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import PaddedExamples
from autopeft.training.lanes.pack import Pack
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.trunk import SharedTrunk
from autopeft.training.tasks import Task


def scoring_rows(seeds: Seeds, n: int, size: int, turn: int) -> np.ndarray:
    """Example numbers of one batch of the order that rules are scored on.

    A seeded permutation per epoch, cut into batches, the last of which may be smaller; a pure
    function of its arguments.

    Args:
        seeds: Of the replicate.
        n: Training examples.
        size: Of a batch.
        turn: The batch's number, over all epochs.
    """
    epoch, index = divmod(turn, -(-n // size))
    order = np.random.default_rng(seeds.seed("scoring order", step=epoch)).permutation(n)
    return order[index * size : (index + 1) * size]


@torch.no_grad()
def scored_losses(
    pack: Pack,
    task: Task,
    examples: PaddedExamples,
    rows: np.ndarray,
    *,
    gains: Tensor,
    trunk: SharedTrunk,
    micro: int,
) -> Tensor:
    """Every lane's mean loss on these examples under each of some gains, [candidates, K].

    Lanes that asked for nothing ride along, since they are stacked with those that did; what they
    give is thrown away, and nothing of theirs changes.

    Args:
        pack: The lanes.
        task: Gives the loss.
        examples: The training examples.
        rows: Example numbers.
        gains: [candidates, K, n_layers], see `Call`.
        trunk: Of the pack; computed once for all candidates.
        micro: Examples per pass.
    """
    width = examples.width(rows)
    sums: Sequence[list[Tensor]] = [[] for _ in gains]
    for start in range(0, len(rows), micro):
        part = rows[start : start + micro]
        batch = examples.batch(part, width)
        known = trunk.known(batch, part, again=True)
        with pack.running():
            for own, gain in zip(sums, gains, strict=True):
                call = replace(SILENT, gains=gain)
                own.append(task.loss_sums(pack(batch, call, known), batch))
    total = torch.stack([torch.stack(own).sum(0) for own in sums])
    return total / task.weight(examples, rows)
