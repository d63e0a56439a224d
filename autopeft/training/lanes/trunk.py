"""What passes over the same batch share: the trunk, computed once for all of them."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from autopeft.methods.lane_operator import SILENT, Call
from autopeft.training.activations import ActivationCache
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Pack


class SharedTrunk:
    """The trunk of several packs that read the same batches.

    Args:
        packs: At least one, of one backbone.
        cache: Of the examples that the batches are made of, or None.

    Attributes:
        branch_points: First layers of the packs' lanes, each once, ascending.
    """

    def __init__(self, packs: Sequence[Pack], cache: ActivationCache | None = None) -> None:
        self._packs, self._cache = packs, cache
        self._handed_on = packs[0].handed_on
        self.branch_points = sorted({first for pack in packs for first in pack.branch_points})

    def known(
        self, batch: Batch, rows: np.ndarray, *, again: bool = False, call: Call = SILENT
    ) -> dict[int, Tensor]:
        """What is known of the trunk, for `Pack.forward` of every pack.

        A pack that is alone runs what is not kept in its own pass, and so does every pack where
        each layer hands on its own.

        Args:
            batch: The rows.
            rows: Their example numbers, [B].
            again: Whether the packs run over the batch more than once.
            call: Of the packs' passes, where the backbone's own dropout runs in them.
        """
        known = {}
        if self._cache is not None:
            known = self._cache.known(self, rows, batch.mask.shape[1])
            known = self._with_handed_on(batch, known)
        missing = [point for point in self.branch_points if point > 0 and point not in known]
        if (again or len(self._packs) > 1) and missing and self._handed_on.from_first:
            known |= self._run(batch, missing, known, call)
        return known

    def trunk(
        self, batch: Batch, wanted: Collection[int], known: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """See `Pack.trunk`; here, what layers hand on need not be known."""
        return self._run(batch, wanted, self._with_handed_on(batch, known))

    def _with_handed_on(self, batch: Batch, known: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What is kept of some layers, and what the first one hands on to them: it is not kept."""
        if not known or not self._handed_on.lacks(known):
            return dict(known)
        return self._run(batch, [1], {}) | dict(known)

    def _run(
        self,
        batch: Batch,
        wanted: Collection[int],
        known: Mapping[int, Tensor],
        call: Call = SILENT,
    ) -> dict[int, Tensor]:
        with self._packs[0].running():
            return self._packs[0].trunk(batch, wanted, known, call)
