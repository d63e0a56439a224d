"""Noisy expected hypervolume improvement, exact in what is known and in the quality.

Costs are known for every candidate (as expected, where they are measured), so all that is random
in a candidate's gain is its quality, and that is Gaussian. The costs of the front cut the cost
axes into cells; in a cell, a candidate gains where its quality beats the best that the front has
there, so its expected gain is a sum of one-dimensional expected improvements:

    E[gain(x)] = mean over worlds s of  sum over cells j of  volume(j below the costs of x)
                 * (EI(mu_s(x), sd_s(x); F_sj) - EI(mu_s(x), sd_s(x); 1))

F_sj is the best quality of the front in world s among members whose costs reach cell j; utilities
end at 1. This is the expectation that qNEHVI (Daulton et al., arXiv 2105.08195) estimates by
sampling and box decompositions, with the sampling only over the front's own uncertainty.

Notation: `S` worlds, `n` candidates, `b` members of the front, `k` costs, `J` cells; all float64,
utilities are maximised and the reference point is 0.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

CHUNK = 4_000_000
"""Terms computed at once: bounds memory."""


@dataclass(frozen=True)
class Cells:
    """Boxes of the costs between the coordinates of the front, from 0 to 1.

    Attributes:
        low: `[J, k]`.
        high: `[J, k]`.
        levels: `[S, J]`: the best quality of the front in each.
    """

    low: Array
    high: Array
    levels: Array

    @classmethod
    def of(cls, costs: Array, qualities: Array) -> "Cells":
        """The cells of a front.

        Args:
            costs: `[b, k]` utilities of the members' costs.
            qualities: `[b, S]` their qualities in every world; below 0 counts as 0.
        """
        wanted = _on_some_front(costs, qualities)
        costs, qualities = costs[wanted], qualities[wanted]
        edges = [np.unique(np.concatenate([[0.0, 1.0], column])) for column in costs.T]
        low = _product([edge[:-1] for edge in edges])
        high = _product([edge[1:] for edge in edges])
        reached = np.all(costs[:, None, :] >= high[None, :, :] - 1e-12, axis=-1)
        levels = np.zeros((qualities.shape[1], len(low)))
        for member, quality in zip(list(reached), qualities, strict=True):
            levels[:, member] = np.maximum(levels[:, member], quality[:, None])
        return cls(low, high, levels)

    def gains(self, costs: Array, mean: Array, sd: Array, *, floor: float = 0.0) -> Array:
        """The expected gain of each candidate, `[n]`.

        Args:
            costs: `[n, k]`.
            mean: `[n, S]` of the quality.
            sd: `[n, S]`, or `[n, 1]` where all worlds agree.
            floor: Quality below which a candidate gains nothing.
        """
        step = max(1, CHUNK // max(self.levels.size, 1))
        pieces = [
            self._gains(costs[i : i + step], mean[i : i + step], sd[i : i + step], floor)
            for i in range(0, len(mean), step)
        ]
        return np.concatenate(pieces) if pieces else np.empty(0)

    def _gains(self, costs: Array, mean: Array, sd: Array, floor: float) -> Array:
        reach = np.minimum(costs[..., None, :], self.high) - self.low
        volumes = np.maximum(reach, 0.0).prod(-1)[:, None, :]
        mean, sd = mean[:, :, None], sd[:, :, None]
        improvement = expected_improvement(mean, sd, np.maximum(self.levels, floor)[None])
        improvement -= expected_improvement(mean, sd, 1.0)
        if floor > 0.0:  # who passes the floor also gains what lies between it and the level
            below = np.maximum(floor - self.levels, 0.0)[None]
            improvement += below * ndtr((mean - floor) / sd)
        return np.asarray((volumes * np.maximum(improvement, 0.0)).sum(-1).mean(-1))


def _on_some_front(costs: Array, qualities: Array) -> NDArray[np.bool_]:
    """Which members no other dominates in at least one world; the others change no level."""
    no_dearer = np.all(costs[None, :, :] >= costs[:, None, :], axis=-1)
    cheaper = no_dearer & ~no_dearer.T
    earlier = np.tri(len(costs), k=-1, dtype=np.bool_)  # of equal members the first stays
    better = qualities[None] > qualities[:, None]
    equal = qualities[None] == qualities[:, None]
    ahead = cheaper | (no_dearer & earlier)
    beaten = (no_dearer[..., None] & better) | (ahead[..., None] & equal)
    return np.asarray(~beaten.any(axis=1).all(axis=1))


def expected_improvement(mean: Array, sd: Array, level: Array | float) -> Array:
    """E[max(u - level, 0)] of a normal u; sd > 0."""
    z = (mean - level) / sd
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    return np.asarray(np.maximum(sd * (density + z * ndtr(z)), 0.0))


def _product(axes: list[Array]) -> Array:
    """`[J, k]`: every combination of one value of each axis; one empty row where there is none."""
    if not axes:
        return np.empty((1, 0))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
