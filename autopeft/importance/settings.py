"""What an importance pass measures: plain values that need no torch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

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

MOST_WEIGHTS = 2**23
"""Single weights that a score keeps over all sites: a tenth of a BERT-base (LoRA of rank 48 on all
its linear maps), or LoRA of rank 8 on those of a model of a billion parameters. Over all scores'
lists one takes 72 bytes of memory, and 25 where they are stored. What asks for more is refused."""


@dataclass(frozen=True)
class ImportanceSettings:
    """What a pass measures.

    Attributes:
        examples: Training examples that are read; SPT reads 512 (16 batches of 32). All of them
            where there are fewer.
        head: The task head that the loss is taken through: `initial`, as trials begin, or
            `fitted`, trained by itself on the frozen backbone's features of the same examples.
        keep: Share of each matrix whose largest weights are kept one by one.
        block: Side of the blocks.
    """

    examples: int = 512
    head: Head = "fitted"
    keep: float = 0.1
    block: int = 32

    def share(self, total: int) -> float:
        """Of each matrix's weights that are kept, of `total` in all matrices."""
        return min(self.keep, MOST_WEIGHTS / total)

    def kept(self, size: int, total: int) -> int:
        """How many weights of a matrix of `size` are kept, of `total` in all matrices."""
        return max(1, int(self.share(total) * size))

    def to_dict(self, batch_size: int) -> dict[str, Any]:
        """Plain JSON, as the store keeps it beside a map.

        Args:
            batch_size: The study's: sensitivity is of batches.
        """
        return {**asdict(self), "batch_size": batch_size}
