"""A search replayed on an emulator: what the tuner does, with recorded curves for training.

The cost of a search is training and evaluating, by closed-form FLOPs, in units of the training of
the table's mean full trial; suggestions cost their CPU seconds over the recorded seconds of such a
trial (wall seconds of a lane on the machine that recorded).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem, Searcher
from autopeft.searchers.dominance import hypervolume, non_dominated
from autopeft.searchers.evidence import RungValues, readings
from autopeft.searchers.front import utilities
from autopeft.searchers.rungs import stopped_at_rung
from benchmarks.quality.emulator import Emulator
from benchmarks.quality.problem import TOKENS
from benchmarks.quality.tasks import EPOCHS, TRAIN


@dataclass(frozen=True)
class Setup:
    """How a search is run.

    Attributes:
        q: Proposals of an ask.
        rungs: Shares of the budget, ascending, the last 1.0.
        stops: Whether rungs end trials.
        trials: Configurations tried at most.
        cost: Mean full trials that may be spent.
    """

    q: int
    rungs: tuple[float, ...]
    stops: bool
    trials: int
    cost: float


@dataclass(frozen=True)
class Step:
    """The state after a cohort.

    Attributes:
        trials: Configurations tried.
        cost: Spent so far, all in all, in mean full trials.
        training: Of that, training.
        evaluating: Of that, evaluating.
        suggest_s: CPU seconds of suggesting so far.
        hypervolume: Of the noise-free values of the measured front.
        measured: Of the measured values themselves.
        found: Of the noise-free values of everything trained in full, whether its noise let it
            onto the measured front or kept it off.
    """

    trials: int
    cost: float
    training: float
    evaluating: float
    suggest_s: float
    hypervolume: float
    measured: float
    found: float


class Simulation:
    """One search.

    Args:
        problem: What is searched.
        emulator: What trains.
        searcher: Who proposes.
        setup: How.
        seed: Of the noise.
    """

    def __init__(
        self, problem: Problem, emulator: Emulator, searcher: Searcher, setup: Setup, seed: int
    ) -> None:
        self._problem, self._emulator, self._searcher = problem, emulator, searcher
        self._setup, self._seed = setup, seed
        mean = np.mean([problem.flops(each) for each in emulator.table.configurations])
        self._flops = float(mean)
        self._curves: dict[int, dict[float, tuple[float, float]]] = {}
        self._costs: dict[int, tuple[float, ...]] = {}
        self._reached: dict[float, list[int]] = {rung: [] for rung in setup.rungs}
        self._full: list[tuple[Configuration, float]] = []
        forward = (
            2.0
            * TOKENS
            * sum(
                site.in_features * site.out_features
                for layer in problem.anatomy.layers
                for site in layer.sites.values()
            )
        )
        self._evaluation = forward / self._flops * problem.n_validation / (TRAIN * EPOCHS)
        self._training, self._evaluating, self._suggesting = 0.0, 0.0, 0.0
        self._count = 0

    def points(self) -> NDArray[np.float64]:
        """Noise-free utilities of every configuration trained in full, `[n, m]`."""
        return self._points([self._emulator.final(each) for each, _ in self._full])

    def run(self) -> list[Step]:
        """Search until the budget is spent or nothing is left to propose."""
        steps = []
        setup = self._setup
        while self._count < setup.trials and self._cost() < setup.cost:
            started = time.process_time()
            asked = self._searcher.ask(min(setup.q, setup.trials - self._count))
            self._suggesting += time.process_time() - started
            if not asked:
                break
            self._cohort([each.configuration for each in asked])
            steps.append(self._step())
        return steps

    def _cost(self) -> float:
        suggesting = self._suggesting / self._emulator.table.seconds
        return self._training + self._evaluating + suggesting

    def _cohort(self, configurations: Sequence[Configuration]) -> None:
        """Train a cohort through the rungs, and tell what was measured."""
        numbers = range(self._count, self._count + len(configurations))
        self._count += len(configurations)
        left = dict(zip(numbers, configurations, strict=True))
        frame, cohort = self._problem.frame, numbers.start
        for number, each in left.items():
            self._curves[number] = self._curve(each)
            self._costs[number] = utilities(frame[1:], self._problem.known(each))
        told: list[Observation] = []
        previous = 0.0
        for rung in self._setup.rungs:
            for number, configuration in left.items():
                self._training += (
                    (rung - previous) * self._problem.flops(configuration) / self._flops
                )
                told.append(self._observation(number, configuration, rung))
                self._evaluating += self._evaluation
                self._reached[rung].append(number)
            if rung < 1.0 and self._setup.stops:
                left = self._survivors(left, rung, cohort)
            previous = rung
        self._full += [(each, self._curves[n][1.0][0]) for n, each in left.items()]
        started = time.process_time()
        self._searcher.tell(sorted(told, key=lambda each: (each.number, each.rung)))
        self._suggesting += time.process_time() - started

    def _curve(self, configuration: Configuration) -> dict[float, tuple[float, float]]:
        """Accuracy and loss at every rung."""
        values = self._emulator.measured(configuration, self._seed)
        accuracies, losses = np.split(values, 2)
        pairs = zip(accuracies.tolist(), np.exp(losses).tolist(), strict=True)
        return dict(zip(self._emulator.rungs, pairs, strict=True))

    def _observation(self, number: int, configuration: Configuration, rung: float) -> Observation:
        quality, known = self._problem.frame[0].name, self._problem.known(configuration)
        value = self._curves[number][rung][0]
        return Observation(number, configuration, {**known, quality: value}, rung=rung)

    def _survivors(
        self, left: Mapping[int, Configuration], rung: float, cohort: int
    ) -> dict[int, Configuration]:
        """Who goes on, by what `autopeft.tuner.cohort` would show the rule."""
        numbers = self._reached[rung]
        place = self._setup.rungs.index(rung)
        beside = self._setup.rungs[place - 1] if place else self._setup.rungs[1]
        told = [n if place or n < cohort else -1 for n in numbers]
        reached = set(self._reached[beside])
        nothing = (np.nan, np.nan)
        here = np.array([self._curves[n][rung] for n in numbers])
        next_to = np.array([self._curves[n][beside] if n in reached else nothing for n in told])
        values = RungValues(
            here[:, 0], here[:, 1], next_to[:, 0], next_to[:, 1], self._problem.n_validation
        )
        costs = np.array([self._costs[n] for n in numbers])
        stopped = stopped_at_rung(list(left), numbers, costs, readings(values))
        return {n: each for n, each in left.items() if n not in stopped}

    def _step(self) -> Step:
        measured = self._points([value for _, value in self._full])
        true = self.points()
        front = non_dominated(measured)
        return Step(
            self._count,
            self._cost(),
            self._training,
            self._evaluating,
            self._suggesting,
            hypervolume(true[front]),
            hypervolume(measured),
            hypervolume(true),
        )

    def _points(self, values: Sequence[float]) -> NDArray[np.float64]:
        frame = self._problem.frame
        rows = [
            utilities(frame, {**self._problem.known(each), frame[0].name: value})
            for (each, _), value in zip(self._full, values, strict=True)
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(frame))
