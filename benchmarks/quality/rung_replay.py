"""Replays rules for stopping on trials that were all trained to the end.

A replay takes trials in cohorts through the rungs, as the tuner does: what a rung decides, it
decides by all that was measured there so far. It then compares the front of what was left with
the front of everything.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from autopeft.searchers.dominance import hypervolume, non_dominated, non_dominated_ranks
from autopeft.searchers.evidence import RungValues, readings
from autopeft.searchers.rungs import KEEP, NOISE_SDS, stopped_at_rung
from benchmarks.quality.rung_tables import RungTable

SURE_SDS = 2.0
"""A trial of the final front was lost beyond the noise where nothing that is left, at no more
cost, comes within this many standard deviations of the difference."""


@dataclass(frozen=True)
class Rung:
    """What a rule may know when it decides.

    Attributes:
        table: The curves; a rule reads no later rung of them, but for `earlier`.
        shares: The rungs of this replay, the last 1.0.
        place: Of this rung among them.
        numbers: Trials measured here so far, ascending.
        candidates: Those of this cohort that may be stopped.
        earlier: Trials of earlier cohorts that were measured at the next rung.
    """

    table: RungTable
    shares: tuple[float, ...]
    place: int
    numbers: list[int]
    candidates: list[int]
    earlier: frozenset[int]

    @property
    def quality(self) -> np.ndarray[Any, Any]:
        """Of all measured here."""
        return self.table.quality[self.numbers, self.table.place(self.shares[self.place])]

    @property
    def costs(self) -> np.ndarray[Any, Any]:
        """Utilities of all measured here."""
        return self.table.costs[self.numbers]


Rule: TypeAlias = Callable[[Rung], set[int]]


def ours(*, keep: float = KEEP, noise_sds: float = NOISE_SDS, losses: bool = True) -> Rule:
    """The rule of the tuner, with its constants or others, with or without what losses tell."""

    def rule(rung: Rung) -> set[int]:
        table, numbers = rung.table, rung.numbers
        beside = rung.shares[rung.place - 1] if rung.place else rung.shares[1]
        told = np.array([bool(rung.place) or n in rung.earlier for n in numbers])
        here, there = table.place(rung.shares[rung.place]), table.place(beside)
        unknown = np.full(len(numbers), np.nan)
        values = RungValues(
            quality=rung.quality,
            loss=table.loss[numbers, here] if losses else unknown,
            quality_beside=np.where(told, table.quality[numbers, there], np.nan),
            loss_beside=np.where(told, table.loss[numbers, there], np.nan),
            n_examples=table.n_examples,
        )
        return stopped_at_rung(
            rung.candidates,
            numbers,
            rung.costs,
            readings(values),
            keep=keep,
            noise_sds=noise_sds,
        )

    return rule


def layers(keep: float) -> Rule:
    """The best share by non-dominated sorting of what was measured, and nothing else."""

    def rule(rung: Rung) -> set[int]:
        ranks = non_dominated_ranks(np.column_stack([rung.quality, rung.costs]))
        return _rest(rung, np.argsort(ranks, kind="stable"), keep)

    return rule


def halving(keep: float) -> Rule:
    """The best share by quality alone."""
    return lambda rung: _rest(rung, np.argsort(-rung.quality, kind="stable"), keep)


def _rest(rung: Rung, order: np.ndarray[Any, Any], keep: float) -> set[int]:
    kept = {rung.numbers[place] for place in order[: math.ceil(keep * len(order) - 1e-9)]}
    return set(rung.candidates) - kept


def dominance(margin: float) -> Rule:
    """All that something no dearer beats by a constant margin."""

    def rule(rung: Rung) -> set[int]:
        costs, quality = rung.costs, rung.quality
        no_dearer = (costs[None] >= costs[:, None]).all(axis=2)
        beaten = (no_dearer & (quality[None] >= quality[:, None] + margin)).any(axis=1)
        return {n for n, flag in zip(rung.numbers, beaten, strict=True) if flag} & set(
            rung.candidates
        )

    return rule


# -- replaying ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a rule saved and lost.

    Attributes:
        saving: Steps of training everything over the steps that were taken, baselines left out.
        kept: Share of the final hypervolume.
        lost: Trials of the final front that were stopped.
        surely_lost: Those of them that nothing left replaces within the noise.
    """

    saving: float
    kept: float
    lost: int
    surely_lost: int


def replay(
    table: RungTable,
    early: Sequence[float],
    rule: Rule,
    *,
    order: Sequence[int] | None = None,
    cohort: int | None = None,
) -> Outcome:
    """Take trials through the rungs.

    Args:
        table: Their curves.
        early: The rungs below the full budget.
        rule: Says which stop.
        order: All trials but the baselines, in the order in which they are proposed.
        cohort: Trials proposed at once; all of them where it is None.
    """
    own = [n for n in (order or range(len(table.final))) if n not in table.baselines]
    size = cohort or max(len(own), 1)
    cohorts = [sorted(table.baselines)] if table.baselines else []
    cohorts += [list(own[start : start + size]) for start in range(0, len(own), size)]
    shares = (*early, 1.0)
    measured: dict[float, set[int]] = {share: set() for share in shares}
    spent = 0.0
    for trials in cohorts:
        earlier = {share: frozenset(numbers) for share, numbers in measured.items()}
        left, before = trials, 0.0
        for place, share in enumerate(shares):
            spent += (share - before) * len([n for n in left if n not in table.baselines])
            measured[share].update(left)
            candidates = [n for n in left if n not in table.baselines]
            if share < 1.0 and candidates:
                numbers = sorted(measured[share])
                after = earlier[shares[place + 1]]
                stopped = rule(Rung(table, shares, place, numbers, candidates, after))
                left = [n for n in left if n not in stopped]
            before = share
    return _outcome(table, sorted(measured[1.0]), len(own) / spent if spent else 1.0)


def _outcome(table: RungTable, left: Sequence[int], saving: float) -> Outcome:
    points = table.points
    best = {int(n) for n in np.flatnonzero(non_dominated(points)) if points[n, 0] > 0.0}
    lost = best - set(left)
    slack = SURE_SDS * math.sqrt(2.0) * table.noise

    def replaced(number: int) -> bool:
        no_dearer = (points[left, 1:] >= points[number, 1:]).all(axis=1)
        return bool((no_dearer & (points[left, 0] >= points[number, 0] - slack)).any())

    whole = hypervolume(points)
    return Outcome(
        saving,
        hypervolume(points[left]) / whole if whole else 1.0,
        len(lost),
        len([number for number in lost if not replaced(number)]),
    )
