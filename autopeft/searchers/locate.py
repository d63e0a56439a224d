"""Finds a point of the space for a configuration: where mutation of a told trial starts.

Observations carry configurations, and mutation works on points. A searcher could remember the
points that it proposed, but would then go on differently after a restart; so the point is always
found from the configuration alone, by descent over the space's own neighbours. For a configuration
outside the space (a baseline, another learning rate) it is the nearest point found.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from autopeft.configuration import Configuration
from autopeft.searchers.base import Problem
from autopeft.searchers.history import stream
from autopeft.space.schema import Scalar
from autopeft.space.space import Point

DESCENTS = 3
"""Descents from fresh samples while none has arrived."""

SAMPLES = 48
"""Samples of which the nearest starts a descent."""

NEIGHBOURS = 32
PATIENCE = 4
"""Neighbours looked at in a round: twice as many after each fruitless round (they are drawn at
random, so one that leads nearer may have been missed), until this many were fruitless."""

ROUNDS = 60

NEAR = 0.03
"""Distance that counts as arrived: one real value, such as the learning rate, 6 % off."""

Cells: TypeAlias = Mapping[tuple[str | int, ...], Scalar]
Ranked: TypeAlias = tuple[float, Point]
"""A point with its distance to the target."""


class Locator:
    """Points of configurations; each is searched once, in a random stream of its own."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._known: dict[str, Point] = {}

    def point(self, configuration: Configuration) -> Point:
        """The nearest point found; it builds the configuration itself where that is possible."""
        if configuration.hash not in self._known:
            self._known[configuration.hash] = self._search(configuration)
        return self._known[configuration.hash]

    def _search(self, configuration: Configuration) -> Point:
        rng = stream(self._problem.seed, 0, f"locate {configuration.hash}")
        target = cells(configuration)
        best = self._descend(target, rng)
        for _ in range(DESCENTS - 1):
            if best[0] < NEAR:
                break
            best = min(best, self._descend(target, rng), key=_distance)
        return best[1]

    def _descend(self, target: Cells, rng: np.random.Generator) -> Ranked:
        """The nearest point of one greedy descent."""
        space = self._problem.space
        best = min(
            (self._ranked(space.sample(rng), target) for _ in range(SAMPLES)), key=_distance
        )
        fruitless = 0
        for _ in range(ROUNDS):
            if best[0] < NEAR or fruitless == PATIENCE:
                break
            near = space.neighbours(best[1], rng, NEIGHBOURS << fruitless)
            found = min((self._ranked(each, target) for each in near), key=_distance, default=best)
            fruitless = fruitless + 1 if found[0] >= best[0] else 0
            best = min(best, found, key=_distance)
        return best

    def _ranked(self, point: Point, target: Cells) -> Ranked:
        return distance(cells(self._problem.build(point)), target), point


def _distance(ranked: Ranked) -> float:
    return ranked[0]


def cells(configuration: Configuration) -> Cells:
    """A configuration as flat cells, so that two can be compared place by place."""
    flat: dict[tuple[str | int, ...], Scalar] = {}
    for group in configuration.groups:
        for layer in group.layers:
            for site in group.sites or ("",):
                place = (group.method, layer, site)
                flat[place] = True
                flat.update(((*place, name), value) for name, value in group.settings)
    flat.update((("sparsity", name), value) for name, value in configuration.sparsity)
    flat.update((("training", name), value) for name, value in configuration.training)
    return flat


def distance(ours: Cells, theirs: Cells) -> float:
    """How far two configurations are apart: a cell that one lacks counts 1, a value up to 1."""
    shared = ours.keys() & theirs.keys()
    lacking = len(ours) + len(theirs) - 2 * len(shared)
    return lacking + sum(_apart(ours[key], theirs[key]) for key in shared)


def _apart(a: Scalar, b: Scalar) -> float:
    """0 for equal values, else between 0 and 1: relative for numbers."""
    if a == b:
        return 0.0
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) / (abs(a) + abs(b))
    return 1.0
