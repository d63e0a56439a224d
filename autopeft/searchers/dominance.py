"""Dominance and hypervolume of points in utility space.

Notation: points are `[n, m]` float arrays of utilities in [0, 1], all maximised, and the reference
point is the origin. A point dominates another when it is at least as good everywhere and better
somewhere; of equal points the one with the lowest index counts, the others are dominated.
"""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    Args:
        points: `[n, m]`, maximised.

    Returns:
        `[n]` flags; of equal points only the lowest index is flagged.
    """
    points = np.asarray(points, dtype=np.float64)
    keep = np.zeros(len(points), dtype=np.bool_)
    front = np.empty_like(points)
    size = 0
    # Best first, so that only points before it, and of those only the front, can dominate one.
    for index in np.lexsort((np.arange(len(points)), *(-points.T[::-1]))):
        if not (front[:size] >= points[index]).all(axis=1).any():
            front[size] = points[index]
            size += 1
            keep[index] = True
    return keep


def non_dominated_ranks(points: Points) -> NDArray[np.int64]:
    """The layer of each point: 0 for the front, 1 for the front of what is left, and so on.

    Args:
        points: `[n, m]`, maximised.

    Returns:
        `[n]` ranks; a repeated point lies one layer below its first occurrence.
    """
    points = np.asarray(points, dtype=np.float64)
    ranks = np.full(len(points), -1, dtype=np.int64)
    rank = 0
    while (left := np.flatnonzero(ranks < 0)).size:
        ranks[left[non_dominated(points[left])]] = rank
        rank += 1
    return ranks


def hypervolume(points: Points) -> float:
    """The exact volume that the points dominate above the origin.

    A sweep in two dimensions; above that, slices along the last objective (each slab's depth
    times the hypervolume of the points that reach it), so the cost grows as n^(m - 1) log n.

    Args:
        points: `[n, m]` with m >= 1, maximised.

    Returns:
        The volume; in [0, 1] for utilities.
    """
    points = np.asarray(points, dtype=np.float64)
    points = points[(points > 0.0).all(axis=1)]
    if not len(points):
        return 0.0
    n_objectives = points.shape[1]
    if n_objectives == 1:
        return float(points.max())
    if n_objectives == 2:
        return _area(points)
    points = points[np.argsort(-points[:, -1], kind="stable")]
    heights = np.append(points[:, -1], 0.0)
    depths = heights[:-1] - heights[1:]
    return float(
        sum(
            depth * hypervolume(points[: index + 1, :-1])
            for index, depth in enumerate(depths)
            if depth > 0.0
        )
    )


def _area(points: Points) -> float:
    """The area under the staircase of `[n, 2]` points, all positive."""
    points = points[np.argsort(-points[:, 0], kind="stable")]
    heights = np.maximum.accumulate(points[:, 1])
    widths = points[:, 0] - np.append(points[1:, 0], 0.0)
    return float(widths @ heights)
