"""Lanes whose loss holds how far two passes over the same rows, with other draws, are apart.

The first pass is the lane's pass as ever: its loss, its draws, its row losses. The second draws
under other names, and so does its trunk where the backbone's own dropout runs: it is not the one
that all passes share. Lanes that compare nothing ride along where they share a pack with others
(the loop puts them in passes of their own): nothing of the second pass reaches them, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from autopeft.methods.lane_operator import Call, Uniform
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Pack

Divergence: TypeAlias = Callable[[Tensor, Tensor, Batch], Tensor]
"""Two outputs of some lanes and their batch to sums of divergences, [k]."""


@dataclass(frozen=True)
class Comparison:
    """What the lanes of one pack compare.

    Attributes:
        pack: The lanes.
        divergence: Of the task.
        positions: Which of them compare two passes, int64 [k].
        weights: What that counts in their losses, [k].
        apart: Whether the second pass has a trunk of its own, since the backbone drops too.
    """

    pack: Pack
    divergence: Divergence
    positions: Tensor
    weights: Tensor
    apart: bool = False

    @classmethod
    def of(cls, pack: Pack, divergence: Divergence) -> "Comparison | None":
        """None where no lane compares anything."""
        positions = [position for position, weight in enumerate(pack.consistency) if weight]
        if not positions:
            return None
        weights = [pack.consistency[position] for position in positions]
        at, of = (torch.tensor(each, device=pack.device) for each in (positions, weights))
        return cls(pack, divergence, at, of, pack.drops)

    def loss(
        self, outputs: Tensor, batch: Batch, call: Call, known: Mapping[int, Tensor]
    ) -> Tensor:
        """All lanes' divergences from a second pass, weighed and summed over the batch.

        Args:
            outputs: Of the first pass, [K, B, ...].
            batch: Its rows.
            call: Its call.
            known: Of the first pass's trunk, see `Pack.forward`.
        """
        again = replace(call, uniform=_Again(call.uniform), row_share=None)
        second = self.pack(batch, again, {} if self.apart else known)
        first, second = (each.index_select(0, self.positions) for each in (outputs, second))
        summed: Tensor = self.weights * self.divergence(first, second, batch)
        return summed.sum()


class _Again:
    """Draws under other names; see `Uniform`."""

    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """See `Uniform`."""
        return self._uniform(f"{name}/again", shape, per_row=per_row)

    def seed(self, name: str) -> int:
        """See `Uniform`."""
        return self._uniform.seed(f"{name}/again")
