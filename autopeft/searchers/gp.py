"""The GP searcher: multi-objective Bayesian optimisation over the real, discrete space.

Quality is modelled by a GP over features, costs are known, and the batch is chosen greedily: each
next proposal maximises the expected gain in hypervolume given those before. The maximisation runs
over configurations themselves (samples, neighbours of the front, then local search), so what is
proposed is exactly what was scored: nothing is rounded, repaired or duplicated afterwards.
"""

import math
from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from autopeft.configuration import Configuration
from autopeft.searchers.acquisition import Acquisition, Beliefs
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.batch import Batch, Choice
from autopeft.searchers.candidates import Candidate, Candidates
from autopeft.searchers.cost import PackCost
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.features import Features
from autopeft.searchers.gaussian_process import Prior
from autopeft.searchers.history import History, stream
from autopeft.searchers.initial import InitialDesign, spread
from autopeft.searchers.portfolio import portfolio
from autopeft.searchers.surrogate import fit_cost, fit_quality, noise_variance
from autopeft.study.records import Origin

SAMPLED = 384
"""Samples of the space among which each ask begins."""

FRONT_MEMBERS = 16
"""Members of the front whose neighbours join them; a random choice where there are more."""

AROUND_FRONT = 12
"""Neighbours of each of these members."""

MAX_ROWS = 800
"""Measurements that the GP is conditioned on: full-budget ones and recent ones first."""


class GPSearcher:
    """Proposes what is expected to enlarge the hypervolume most."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History(problem)
        self._candidates = Candidates(problem)
        self._features = Features(problem)
        known = [each.proposal for each in portfolio(problem)] if problem.portfolio else []
        self._initial = InitialDesign(problem, self._candidates, self._features, known)

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; every rung of a trial informs the surrogate."""
        self._history.tell(observations)

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """At most `q` proposals: the rest of the start first, then those of the acquisition."""
        seen = self._history.seen(pending)
        proposals = self._initial.propose(q, self._history, seen)
        wanted = q - len(proposals)
        if wanted <= 0:
            return proposals
        rng = stream(self._problem.seed, len(seen), "gp")
        seen = self._history.seen(pending)
        pool = self._pool(rng, seen)
        if pool and len(self._history.measurements()) >= 2:
            waiting = list(self._history.pending(pending).values())
            with threadpool_limits(1):  # sums, and so choices, the same on every machine
                found = self._optimised(pool, min(wanted, len(pool)), waiting, rng, seen)
        else:
            details = {"reason": "space-filling: fewer than two measurements"}
            chosen = spread(pool, wanted, self._features)
            found = [Proposal(each.configuration, Origin.SEARCHER, details) for each in chosen]
        self._history.propose(each.configuration for each in found)
        return proposals + found

    def _pool(self, rng: np.random.Generator, seen: frozenset[str]) -> list[Candidate]:
        """Samples of the space and neighbours of the front, distinct."""
        pool = {each.hash: each for each in self._candidates.sample(rng, SAMPLED, seen)}
        members = self._history.front()
        if len(members) > FRONT_MEMBERS:
            kept = rng.choice(len(members), FRONT_MEMBERS, replace=False)
            members = [members[index] for index in sorted(kept)]
        for member in members:
            if point := self._problem.space.nearest(member.configuration.to_dict()):
                near = self._candidates.neighbours(point, rng, AROUND_FRONT, seen)
                pool.update((each.hash, each) for each in near)
        return list(pool.values())

    def _optimised(
        self,
        pool: list[Candidate],
        wanted: int,
        waiting: Sequence[Configuration],
        rng: np.random.Generator,
        seen: frozenset[str],
    ) -> list[Proposal]:
        """The batch that maximises the acquisition greedily, and why."""
        measurements = _weightiest(self._history.measurements(), MAX_ROWS)
        every = [
            *(each.configuration for each in measurements),
            *(each.configuration for each in pool),
        ]
        encoding = Encoding.of(self._problem, self._features, every)
        acquisition = self._acquisition(encoding, measurements, waiting, wanted, rng)
        mean = float(np.mean([self._problem.flops(m.configuration) for m in measurements]))
        batch = Batch(acquisition, PackCost(self._problem, mean), self._candidates, rng, seen)
        choices = batch.choose(pool, wanted)
        chosen = [choice.candidate.configuration for choice in choices]
        means, sds = acquisition.predict(chosen)
        return [
            Proposal(
                choice.candidate.configuration,
                Origin.SEARCHER,
                self._why(choice, float(mean), float(sd**2) + acquisition.noise),
            )
            for choice, mean, sd in zip(choices, means, sds, strict=True)
        ]

    def _acquisition(
        self,
        encoding: Encoding,
        measurements: Sequence[Observation],
        waiting: Sequence[Configuration],
        wanted: int,
        rng: np.random.Generator,
    ) -> Acquisition:
        """What is believed now, as the acquisition."""
        full = [m for m in measurements if m.rung >= 1.0 and not m.failed]
        return Acquisition(
            encoding,
            self._beliefs(encoding, measurements, rng),
            front=[m.configuration for m in full if self._history.counts(m)],
            pending=waiting,
            batch=wanted,
            seed=int(rng.integers(2**31)),
        )

    def _beliefs(
        self, encoding: Encoding, measurements: Sequence[Observation], rng: np.random.Generator
    ) -> Beliefs:
        """A surrogate of the quality, and of each cost that is measured and wanted or bounded."""
        drawn = rng if self._problem.surrogate == "saas-nuts" else None
        problem, probes = self._problem, self._history.probes()
        quality, *costs = problem.frame
        limits = [each for each in problem.limits if each.frame != quality]
        measured = {each.name: each for each in [*costs, *(each.frame for each in limits)]}
        fitted = {
            name: found
            for name, frame in measured.items()
            if name not in encoding.known_names
            and (found := fit_cost(frame, encoding, probes, Prior())) is not None
        }
        return Beliefs(
            fit_quality(problem, encoding, measurements, Prior(), rng=drawn),
            costs={i: fitted[f.name] for i, f in enumerate(problem.frame) if f.name in fitted},
            bounds=[(fitted[e.metric], e.least) for e in limits if e.metric in fitted],
            floor=max([0.0, *(e.least for e in problem.limits if e.frame == quality)]),
        )

    def _why(self, choice: Choice, mean: float, variance: float) -> dict[str, object]:
        """The details of a proposal; the prediction is of what will be measured, in its unit."""
        frame = self._problem.frame[0]
        span = frame.best - frame.worst
        value = frame.worst + span * mean
        variance += noise_variance(frame, value, self._problem.n_validation)
        return {
            "source": "acquisition",
            "reason": "expected hypervolume gain",
            "expected_gain": choice.gain,
            "relative_cost": choice.cost,
            "gain_per_cost": choice.gain / choice.cost,
            "predicted": {
                frame.name: {"mean": value, "sd": abs(span) * math.sqrt(max(variance, 0.0))}
            },
            "known": dict(self._problem.known(choice.candidate.configuration)),
        }


def _weightiest(measurements: Sequence[Observation], n: int) -> list[Observation]:
    """At most `n` measurements, those that matter most first: full budget, then recent."""
    return sorted(measurements, key=lambda each: (-each.rung, -each.number))[:n]
