"""Chooses a batch: sequential-greedy maximisation of the acquisition over candidates.

For each proposal, everything in the pool is scored, then the best are climbed from: their
neighbours are scored and join the pool. The best candidate found is chosen, counts as pending from
then on, and the next proposal is sought.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.searchers.acquisition import Acquisition
from autopeft.searchers.candidates import Candidate, Candidates
from autopeft.searchers.cost import PackCost

CLIMBERS = 6
"""Best candidates whose neighbours are scored in each round of the local search."""

CLIMB = 12
"""Neighbours of each climber."""

ROUNDS = 3
"""Rounds of local search for each proposal."""

KEPT = 192
"""Best candidates that are scored again for the batch's next proposal: gains only shrink as more
is chosen, so what was poor before stays poor."""


@dataclass(frozen=True)
class Choice:
    """A chosen candidate.

    Attributes:
        candidate: What was chosen.
        gain: The expected gain in hypervolume.
        cost: What it costs to train alone, relative to a mean trial.
    """

    candidate: Candidate
    gain: float
    cost: float


@dataclass
class _Scored:
    candidate: Candidate
    gain: float
    cost: float
    climbed: bool = False

    @property
    def order(self) -> tuple[float, float, str]:
        """Best first: by gain per cost, then by cost, then by hash."""
        return (-self.gain / self.cost, self.cost, self.candidate.hash)


class Batch:
    """One batch in the making."""

    def __init__(
        self,
        acquisition: Acquisition,
        cost: PackCost,
        candidates: Candidates,
        rng: np.random.Generator,
        seen: frozenset[str],
    ) -> None:
        self._acquisition = acquisition
        self._cost = cost
        self._candidates = candidates
        self._rng = rng
        self._seen = seen

    def choose(self, pool: Sequence[Candidate], n: int) -> list[Choice]:
        """At most `n` of the pool or of what is reached from it by local search."""
        chosen: list[Choice] = []
        scored = self._scored(pool)
        while scored and len(chosen) < n:
            self._climb(scored)
            best = scored.pop(0)
            chosen.append(
                Choice(best.candidate, best.gain, self._cost.alone(best.candidate.configuration))
            )
            self._seen |= {best.candidate.hash}
            if len(chosen) < n:
                self._acquisition.choose(best.candidate.configuration)
                self._cost.choose(best.candidate.configuration)
                # Who shares the trunk of what was chosen has become cheaper.
                scored.sort(key=lambda each: -each.gain / self._cost(each.candidate.configuration))
                scored = self._scored([each.candidate for each in scored[:KEPT]])
        return chosen

    def _climb(self, scored: list[_Scored]) -> None:
        """Extend `scored` (best first, kept so) by local search."""
        for _ in range(ROUNDS):
            reached = {each.candidate.hash for each in scored}
            fresh: dict[str, Candidate] = {}
            for climber in [each for each in scored[:CLIMBERS] if not each.climbed]:
                climber.climbed = True
                seen = self._seen | reached | fresh.keys()
                near = self._candidates.neighbours(climber.candidate.point, self._rng, CLIMB, seen)
                fresh.update((each.hash, each) for each in near)
            if not fresh:
                return
            scored.extend(self._scored(list(fresh.values())))
            scored.sort(key=lambda each: each.order)

    def _scored(self, candidates: Sequence[Candidate]) -> list[_Scored]:
        """The candidates with their scores, best first; equal scores by hash."""
        if not candidates:
            return []
        configurations = [each.configuration for each in candidates]
        gains = self._acquisition.gains(configurations)
        scored = [
            _Scored(candidate, float(gain), self._cost(candidate.configuration))
            for candidate, gain in zip(candidates, gains, strict=True)
        ]
        return sorted(scored, key=lambda each: each.order)
