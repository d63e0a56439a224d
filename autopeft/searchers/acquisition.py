"""The acquisition: expected gain in hypervolume per unit of cost, over a discrete set.

Given what is believed (the surrogates' worlds) and the front in each world, see
`autopeft.searchers.improvement`. The cost of a trial is its closed-form FLOPs, so that no timing
enters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm, qmc

from autopeft.configuration import Configuration
from autopeft.searchers.dominance import non_dominated_ranks
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.improvement import Cells
from autopeft.searchers.surrogate import Surrogate

Array = NDArray[np.float64]

WORLDS = 32
"""Worlds over which the front's uncertainty is averaged; the candidate's own is integrated."""

FRONT, PENDING = 128, 64
"""Members of the front, the best first, and trials in training that are held in every world."""

MARGIN = 2.0
"""Standard deviations by which a told point must be dominated to be left out of account."""


@dataclass(frozen=True)
class Beliefs:
    """The surrogates of one ask.

    Attributes:
        quality: Of the quality.
        costs: Of measured costs, by position in the frame.
        bounds: Of bounded costs, each with the least that keeps its limit.
        floor: Utility of quality below which nothing is gained.
    """

    quality: Surrogate
    costs: Mapping[int, Surrogate]
    bounds: Sequence[tuple[Surrogate, float]] = ()
    floor: float = 0.0


class Acquisition:
    """Scores candidates one at a time, given those that are pending or chosen already.

    Args:
        encoding: Turns configurations into rows and known costs.
        beliefs: What the objectives are believed to be.
        front: Configurations measured at the full budget; may be empty.
        pending: Configurations in training; may be empty.
        batch: How many will be chosen at most.
        seed: Seeds the worlds.

    Attributes:
        noise: Fitted variance of a measured quality about its true value, in utility squared.
    """

    def __init__(
        self,
        encoding: Encoding,
        beliefs: Beliefs,
        *,
        front: Sequence[Configuration],
        pending: Sequence[Configuration],
        batch: int,
        seed: int,
    ) -> None:
        self._encoding, self._floor = encoding, beliefs.floor
        self._belief = beliefs.quality
        self.noise = beliefs.quality.noise
        self._measured, self._bounds = beliefs.costs, beliefs.bounds
        held = [*self._contenders(front)[:FRONT], *pending[:PENDING]]
        self._quality = beliefs.quality.worlds(_normal(WORLDS, len(held) + batch, seed))
        self._costs = self._mean_costs(held)
        self._qualities = self._counted(self._quality.imagine(encoding.rows(held)))
        self._cells = Cells.of(self._costs, self._qualities)

    def choose(self, configuration: Configuration) -> None:
        """Take a configuration as chosen: what it is expected to gain is gained."""
        row = self._encoding.rows([configuration])
        self._costs = np.concatenate([self._costs, self._mean_costs([configuration])])
        imagined = self._counted(self._quality.imagine(row))
        self._qualities = np.concatenate([self._qualities, imagined])
        self._cells = Cells.of(self._costs, self._qualities)

    def gains(self, configurations: Sequence[Configuration]) -> Array:
        """The expected gain in hypervolume of each candidate, `[n]`, where limits are kept."""
        rows = self._encoding.rows(configurations)
        mean, sd = self._quality.predict(rows)
        costs = self._mean_costs(configurations, rows)
        return self._cells.gains(costs, mean, sd, floor=self._floor) * self.kept(rows)

    def kept(self, rows: Array) -> Array:
        """The probability that each of the `[n, d]` rows keeps every limit on a cost, `[n]`."""
        probability = np.ones(len(rows))
        for surrogate, least in self._bounds:
            mean, sd = surrogate.predict(rows)
            probability *= ndtr((mean - least) / sd)
        return probability

    def predict(self, configurations: Sequence[Configuration]) -> tuple[Array, Array]:
        """Means and standard deviations of the quality's utility, from the data alone; `[n]`.

        Of the true value: a measurement has its noise as well.
        """
        return self._belief.predict(self._encoding.rows(configurations))

    def _counted(self, qualities: Array) -> Array:
        """Qualities of which those below the floor count for nothing."""
        return np.where(qualities >= self._floor, qualities, 0.0)

    def _contenders(self, front: Sequence[Configuration]) -> list[Configuration]:
        """Those that may be on the front: no other surely dominates them; likely ones first."""
        if not front:
            return []
        rows = self._encoding.rows(front)
        mean, sd = self.predict(front)
        costs = self._mean_costs(front, rows)
        better = (costs[None] >= costs[:, None]).all(-1)
        beaten = better & ((mean - MARGIN * sd)[None] > (mean + MARGIN * sd)[:, None])
        ranks = non_dominated_ranks(np.column_stack([mean, costs]))
        order = np.lexsort((-mean, ranks))
        return [front[index] for index in order if not beaten[index].any()]

    def _mean_costs(
        self, configurations: Sequence[Configuration], rows: Array | None = None
    ) -> Array:
        """`[n, k]` utilities of all costs in the frame's order: exact, or as expected."""
        columns = dict(
            zip(self._encoding.known, self._encoding.costs(configurations).T, strict=True)
        )
        for index, surrogate in self._measured.items():
            rows = self._encoding.rows(configurations) if rows is None else rows
            columns[index] = surrogate.predict(rows)[0].clip(0.0, 1.0)
        every = [columns[index] for index in sorted(columns) if index > 0]
        return np.stack(every, 1) if every else np.empty((len(configurations), 0))


def _normal(n: int, dimensions: int, seed: int) -> Array:
    """`[n, dimensions]` standard normal draws, spread evenly (scrambled Sobol)."""
    if dimensions == 0:
        return np.empty((n, 0))
    draws = qmc.Sobol(dimensions, seed=seed).random(n)
    return np.asarray(norm.ppf(draws.clip(1e-9, 1.0 - 1e-9)))
