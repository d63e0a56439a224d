"""What passes over the same batch share: the trunk, computed once for all of them."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from autopeft.training.activations import ActivationCache
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Pack


class SharedTrunk:
    """The trunk of several packs that read the same batches.

    Args:
        packs: At least one, of one backbone.
        cache: Of the examples that the batches are made of, or None.
        skips: Whether layers may be left out below what is known, see `caching.skips_layers`.

    Attributes:
        branch_points: First layers of the packs' lanes, each once, ascending.
    """

    def __init__(
        self, packs: Sequence[Pack], cache: ActivationCache | None = None, *, skips: bool = False
    ) -> None:
        self._packs, self._cache, self._skips = packs, cache, skips
        self.branch_points = sorted({first for pack in packs for first in pack.branch_points})

    def known(self, batch: Batch, rows: np.ndarray, *, again: bool = False) -> dict[int, Tensor]:
        """Trunk inputs [B, T, d] of branch points, by layer, for `Pack.forward`.

        A pack that is alone runs what is not kept in its own pass, and so does every pack where
        layers cannot be left out.

        Args:
            batch: The rows.
            rows: Their example numbers, [B].
            again: Whether the packs run over the batch more than once.
        """
        width = batch.mask.shape[1]
        known = {} if self._cache is None else self._cache.known(self, rows, width)
        missing = [point for point in self.branch_points if point > 0 and point not in known]
        if (again or len(self._packs) > 1) and missing and self._skips:
            known |= self.trunk(batch, missing, known)
        return known

    def trunk(
        self, batch: Batch, wanted: Collection[int], known: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """See `Pack.trunk`."""
        with self._packs[0].running():
            return self._packs[0].trunk(batch, wanted, known)
