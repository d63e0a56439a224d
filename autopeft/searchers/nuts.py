"""The No-U-Turn sampler: draws from a density whose gradient is known.

Hoffman and Gelman (arXiv 1111.4246) with the multinomial choice of Betancourt (arXiv 1701.02434),
as Stan and Pyro do it: a warm-up adapts the step size by dual averaging and a dense mass matrix in
one window. Written here since the densities of this package have closed-form gradients: nothing
to trace or compile again for each new number of rows, float64, and the seed alone decides.

Notation: `q` is a place and `p` a momentum, both `[d]` float64; `H` the energy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Vector = NDArray[np.float64]
Density = Callable[[Vector], tuple[float, Vector]]
"""The logarithm of the density at a place, up to a constant, and its gradient; -inf or nan where
the place is impossible."""

ACCEPTED = 0.8
"""Acceptance that the step size aims at (Stan's and Pyro's)."""

DIVERGED = 1000.0
"""Loss of energy at which a trajectory has left the numerically sane."""

RADIUS = 2.0
"""Starts are drawn from [-2, 2] per dimension."""

MODE_ITERATIONS, HESSIAN_STEP, LEAST_CURVATURE = 100, 1e-4, 0.25
"""Of `settle`: steps towards the mode, its differences, and the smallest curvature believed."""

_FAR = 1e10

STARTS = 100
"""Starts tried until one is possible."""


WINDOW = (0.15, 0.9)
"""Shares of the warm-up between which places count for the mass matrix, learnt at the end of it:
Stan's and Pyro's for so short a one. Learning it earlier as well made trajectories longer."""


@dataclass(frozen=True)
class _Place:
    q: Vector
    p: Vector
    log_density: float
    gradient: Vector


@dataclass(frozen=True)
class _Tree:
    """A stretch of a trajectory, and the place chosen from it."""

    left: _Place
    right: _Place
    chosen: _Place
    log_weight: float
    p_sum: Vector
    ended: bool
    accepted: float
    n: int


class _Adaptation:
    """Dual averaging of the log step size (Hoffman and Gelman, section 3.2)."""

    def __init__(self, step: float) -> None:
        self._centre = math.log(10.0 * step)
        self._error, self._log_mean, self._n = 0.0, 0.0, 0

    def update(self, accepted: float) -> float:
        """Learn from a trajectory's mean acceptance; the step size to use next."""
        self._n += 1
        self._error += (ACCEPTED - accepted - self._error) / (self._n + 10.0)
        log_step = self._centre - self._error * math.sqrt(self._n) / 0.05
        self._log_mean += self._n**-0.75 * (log_step - self._log_mean)
        return math.exp(log_step)

    @property
    def final(self) -> float:
        """The step size to keep."""
        return math.exp(self._log_mean)


class Nuts:
    """One chain."""

    def __init__(
        self, density: Density, dimensions: int, *, max_depth: int, rng: np.random.Generator
    ) -> None:
        """Prepare a chain.

        Args:
            density: What to draw from.
            dimensions: d.
            max_depth: A trajectory has at most `2 ** max_depth - 1` steps.
            rng: Decides everything.
        """
        self._density, self._max_depth, self._rng = density, max_depth, rng
        self._covariance = np.eye(dimensions)
        self._momentum_root = np.eye(dimensions)
        self._step = 1.0

    def settle(self) -> None:
        """Take the inverse Hessian at the mode for the first mass matrix.

        The warm-up's trajectories are then as short as those after it: half the gradients of a
        chain are saved. What is drawn afterwards has the same density.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            self._settle()

    def _settle(self) -> None:
        def cost(q: Vector) -> tuple[float, Vector]:
            log_density, gradient = self._density(q)
            if not math.isfinite(log_density):
                return _FAR, np.zeros(len(q))
            return -log_density, -gradient

        d = len(self._covariance)
        options = {"maxiter": MODE_ITERATIONS}
        mode = minimize(cost, np.zeros(d), jac=True, method="L-BFGS-B", options=options).x
        slopes = np.array(
            [cost(mode + move)[1] - cost(mode - move)[1] for move in HESSIAN_STEP * np.eye(d)]
        )
        hessian = (slopes + slopes.T) / (4.0 * HESSIAN_STEP)
        if np.isfinite(hessian).all():
            sizes, axes = np.linalg.eigh(hessian)
            self._take_mass((axes / np.clip(sizes, LEAST_CURVATURE, None)) @ axes.T)

    def draw(self, warmup: int, samples: int) -> NDArray[np.float64]:
        """Warm up, then draw: `[samples, d]`.

        Raises:
            ValueError: No possible place was found to start from.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # diverging is part of the search
            return self._drawn(warmup, samples)

    def _drawn(self, warmup: int, samples: int) -> NDArray[np.float64]:
        place = self._start()
        self._step = self._reasonable(place)
        adaptation = _Adaptation(self._step)
        first, last = (int(share * warmup) for share in WINDOW)
        window: list[Vector] = []
        for index in range(1, warmup + 1):
            place, accepted = self._transition(place)
            self._step = adaptation.update(accepted)
            if first < index <= last:
                window.append(place.q)
            if index == last and len(window) > 1:
                self._adapt_mass(np.array(window))
                self._step = self._reasonable(place)
                adaptation = _Adaptation(self._step)
        if warmup:
            self._step = adaptation.final
        drawn = np.empty((samples, len(place.q)))
        for index in range(samples):
            place, _ = self._transition(place)
            drawn[index] = place.q
        return drawn

    def _start(self) -> _Place:
        d = len(self._covariance)
        for _ in range(STARTS):
            q = self._rng.uniform(-RADIUS, RADIUS, d)
            log_density, gradient = self._density(q)
            if math.isfinite(log_density) and np.isfinite(gradient).all():
                return _Place(q, np.zeros(d), log_density, gradient)
        raise ValueError("no possible place to start from")

    def _adapt_mass(self, window: NDArray[np.float64]) -> None:
        """The window's covariance, shrunk as in Stan, becomes the inverse mass matrix."""
        n, d = window.shape
        scaled = np.cov(window, rowvar=False).reshape(d, d) * n / (n + 5.0)
        self._take_mass(scaled + 1e-3 * 5.0 / (n + 5.0) * np.eye(d))

    def _take_mass(self, inverse: NDArray[np.float64]) -> None:
        self._covariance = inverse
        root = np.linalg.cholesky(inverse)
        self._momentum_root = np.linalg.inv(root).T

    def _reasonable(self, place: _Place) -> float:
        """A step size at which one step is accepted with about the wanted probability."""
        start = self._with_momentum(place)
        energy, step, direction = self._energy(start), self._step, 0
        for _ in range(100):
            gained = energy - self._energy(self._leap(start, step))
            now = 1 if gained > math.log(ACCEPTED) else -1
            if direction not in (0, now):
                break
            direction = now
            step *= 2.0**now
        return step

    def _with_momentum(self, place: _Place) -> _Place:
        p = self._momentum_root @ self._rng.standard_normal(len(place.q))
        return _Place(place.q, p, place.log_density, place.gradient)

    def _energy(self, place: _Place) -> float:
        energy = 0.5 * float(place.p @ self._covariance @ place.p) - place.log_density
        return energy if math.isfinite(energy) else math.inf

    def _leap(self, place: _Place, step: float) -> _Place:
        p = place.p + 0.5 * step * place.gradient
        q = place.q + step * (self._covariance @ p)
        log_density, gradient = self._density(q)
        return _Place(q, p + 0.5 * step * gradient, log_density, gradient)

    def _transition(self, place: _Place) -> tuple[_Place, float]:
        """The next place of the chain, and the trajectory's mean acceptance."""
        start = self._with_momentum(place)
        energy = self._energy(start)
        tree = _Tree(start, start, start, 0.0, start.p, False, 0.0, 0)
        for depth in range(self._max_depth):
            forward = self._rng.random() < 0.5
            end = tree.right if forward else tree.left
            grown = self._grow(end, self._step if forward else -self._step, depth, energy)
            taken = (
                not grown.ended
                and math.log(max(self._rng.random(), 1e-300)) < grown.log_weight - tree.log_weight
            )
            tree = self._joined(tree, grown, forward=forward, taken=taken)
            if tree.ended:
                break
        return tree.chosen, tree.accepted / max(tree.n, 1)

    def _grow(self, end: _Place, step: float, depth: int, energy: float) -> _Tree:
        """A tree of `2 ** depth` steps from an end, or as far as it goes."""
        if depth == 0:
            place = self._leap(end, step)
            gained = energy - self._energy(place)
            diverged = gained < -DIVERGED
            return _Tree(
                place, place, place, gained, place.p, diverged, math.exp(min(0.0, gained)), 1
            )
        near = self._grow(end, step, depth - 1, energy)
        if near.ended:
            return near
        forward = step > 0.0
        far = self._grow(near.right if forward else near.left, step, depth - 1, energy)
        share = far.log_weight - np.logaddexp(near.log_weight, far.log_weight)
        taken = not far.ended and math.log(max(self._rng.random(), 1e-300)) < share
        return self._joined(near, far, forward=forward, taken=taken)

    def _joined(self, tree: _Tree, grown: _Tree, *, forward: bool, taken: bool) -> _Tree:
        left, right = (tree.left, grown.right) if forward else (grown.left, tree.right)
        p_sum = tree.p_sum + grown.p_sum
        return _Tree(
            left,
            right,
            grown.chosen if taken else tree.chosen,
            float(np.logaddexp(tree.log_weight, grown.log_weight)),
            p_sum,
            grown.ended or self._turning(left.p, right.p, p_sum),
            tree.accepted + grown.accepted,
            tree.n + grown.n,
        )

    def _turning(self, left: Vector, right: Vector, p_sum: Vector) -> bool:
        """Whether going on would lead back (the generalised criterion of Betancourt)."""
        velocity = self._covariance @ (p_sum - 0.5 * (left + right))
        return bool(left @ velocity <= 0.0 or right @ velocity <= 0.0)
