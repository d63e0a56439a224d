"""What an importance pass measures: plain values that need no torch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autopeft.study.records import BLOCK_SIDE, KEPT_SHARE

MEASURED = (
    "gradient",
    "gradient_sum",
    "sensitivity",
    "snip",
    "fisher",
    "taylor",
    "magnitude",
    "activation",
)
"""Scores that a pass measures, all at once; see `autopeft.importance.scores` for the formulas."""

RANDOM = "random"
"""The control: uniform in [0, 1), a function of the study's seed alone."""

SCORES = (*MEASURED, RANDOM)

SHARED = {"taylor": "snip", "gradient_sum": "gradient"}
"""Whose list of single weights a score shares: squares are ordered as what they are squares of."""

Head = Literal["initial", "fitted"]

USUAL_SHARE = 0.1
"""Of each matrix's weights: kept where nobody says how many."""

USUAL_SIDE = 32
"""Of the blocks whose scores are summed."""

MOST_WEIGHTS = 2**23
"""Single weights that a score then keeps over all sites where that share is more: LoRA of rank 11
on all linear maps of a model of a billion parameters, of rank 3 at seven billion."""

WEIGHT_BYTES = 160
"""Of memory that a kept weight takes while all scores' lists are measured and packed: 72 in the
lists, the rest as they are packed (152 of MiniLM's, all kept). Stored it takes 21 to 31."""


BLOCK_BYTES = 64
"""The same of a block: a number for each score, twice."""


@dataclass(frozen=True)
class ImportanceSettings:
    """What a pass measures.

    Attributes:
        examples: Training examples that are read; SPT reads 512 (16 batches of 32). All of them
            where there are fewer.
        head: The task head that the loss is taken through: `initial`, as trials begin, or
            `fitted`, trained by itself on the frozen backbone's features of the same examples.
        keep: Share of each matrix whose largest weights are kept one by one, however many those
            are; None for `USUAL_SHARE`, of `MOST_WEIGHTS` in all.
        block: Side of the blocks.
    """

    examples: int = 512
    head: Head = "fitted"
    keep: float | None = None
    block: int = USUAL_SIDE

    def asked(self) -> dict[str, str]:
        """Facts of a map: what of it somebody asked for that it would not hold by itself."""
        share = {} if self.keep is None else {KEPT_SHARE: repr(self.keep)}
        side = {} if self.block == USUAL_SIDE else {BLOCK_SIDE: str(self.block)}
        return share | side

    def kept(self, shapes: Sequence[tuple[int, int]]) -> list[int]:
        """How many weights of every matrix [d_in, d_out] of a backbone are kept.

        `MOST_WEIGHTS` are shared out by d_in + d_out, as LoRA's parameters are, so that whatever
        maps a configuration trains, the same rank's worth of weights is there.
        """
        if self.keep is not None:
            sizes = [d_in * d_out for d_in, d_out in shapes]
            return [min(size, math.ceil(self.keep * size)) for size in sizes]
        edges = sum(d_in + d_out for d_in, d_out in shapes)
        return [
            max(1, int(min(self.share_of(shape), MOST_WEIGHTS * sum(shape) / edges)))
            for shape in shapes
        ]

    def blocks(self, shapes: Sequence[tuple[int, int]]) -> int:
        """How many blocks there are in matrices [d_in, d_out]; those at an edge are smaller."""
        side = self.block
        return sum(math.ceil(d_in / side) * math.ceil(d_out / side) for d_in, d_out in shapes)

    def share_of(self, shape: tuple[int, int]) -> float:
        """The weights of a matrix that the usual share comes to, `MOST_WEIGHTS` aside."""
        return USUAL_SHARE * shape[0] * shape[1]

    def to_dict(self, batch_size: int) -> dict[str, Any]:
        """Plain JSON, as the store keeps it beside a map; by default as it always was.

        Args:
            batch_size: The study's: sensitivity is of batches.
        """
        own = {"keep": USUAL_SHARE} if self.keep is None else {"limited": False}
        return {**asdict(self), **own, "batch_size": batch_size}
