"""Importance maps by chance, consistent in themselves, where nothing was measured.

Each score of each site is one random positive matrix W [d_in, d_out]: rows, columns, blocks and
the list of single weights are all taken from it, as a measured map's are.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import ImportanceMap, SiteScores

SCORES = ("fisher", "sensitivity", "gradient", "magnitude", "activation")


def importance_map(
    anatomy: Anatomy,
    *,
    scores: Sequence[str] = SCORES,
    seed: int = 0,
    ranking: Sequence[int] | None = None,
    block: int = 4,
    kept: int | None = None,
) -> ImportanceMap:
    """A plausible map; the same arguments give the same map.

    Args:
        anatomy: Whose sites are scored.
        scores: The scores' names; each has scores of its own.
        seed: Of the random matrices.
        ranking: Layers, the most important first: their totals then follow this order, by every
            score. By chance if None.
        block: Side of the blocks.
        kept: How many single weights a site keeps; all if None.
    """
    rng = np.random.default_rng(seed)
    measured = {}
    for score in scores:
        matrices = {
            (layer.index, role): rng.exponential(size=(site.in_features, site.out_features))
            for layer in anatomy.layers
            for role, site in layer.sites.items()
        }
        if ranking is not None:
            _rank(matrices, ranking)
        measured[score] = {
            key: site_scores(matrix, block=block, kept=kept) for key, matrix in matrices.items()
        }
    return ImportanceMap(measured, block, 64, f"made-up-{seed}", {"data": "made up"})


def with_importance(anatomy: Anatomy, **changes: object) -> Anatomy:
    """The anatomy with such a map; the arguments are `importance_map`'s."""
    return replace(anatomy, importance=importance_map(anatomy, **changes))  # type: ignore[arg-type]


def site_scores(
    matrix: NDArray[np.float64], *, block: int = 4, kept: int | None = None
) -> SiteScores:
    """All that a map keeps of one site whose weights have these scores [d_in, d_out]."""
    flat = matrix.astype(np.float32).ravel()
    most = flat.size if kept is None else min(kept, flat.size)
    largest = np.sort(np.argpartition(-flat, most - 1)[:most])
    order = largest[np.argsort(-flat[largest], kind="stable")]
    return SiteScores(
        inputs=matrix.sum(axis=1).astype(np.float32),
        outputs=matrix.sum(axis=0).astype(np.float32),
        blocks=_blocks(matrix, block),
        weights=order.astype(np.int64),
        values=flat[order],
    )


def _rank(matrices: dict[tuple[int, str], NDArray[np.float64]], ranking: Sequence[int]) -> None:
    """Scales every layer's matrices so that the layers' totals are n, n - 1, ... in the order."""
    for place, layer in enumerate(ranking):
        own = [matrix for key, matrix in matrices.items() if key[0] == layer]
        factor = (len(ranking) - place) / sum(float(matrix.sum()) for matrix in own)
        for matrix in own:
            np.multiply(matrix, factor, out=matrix)


def _blocks(matrix: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Sums over blocks; those at the end of a matrix may be smaller."""
    d_in, d_out = matrix.shape
    rows = np.add.reduceat(matrix, np.arange(0, d_in, side), axis=0)
    return np.add.reduceat(rows, np.arange(0, d_out, side), axis=1).astype(np.float32)
