"""How much of a study's quality and hypervolume each choice decides.

The importance of a choice is its **share**: the part of the variance between trials that goes with
it, alone or together with others (a total Sobol index; shares may sum to more than 1). It is a
permutation importance on held-out trials: a model of the trials predicts those that it has not
seen, then again with one choice taken from other trials; half of what the squared error grows by,
over the variance, is the share (Breiman 2001; for groups of columns Gregorutti et al. 2015, doi
10.1016/j.csda.2015.04.002; the relation to Sobol indices, which needs choices made independently:
Benard et al., arXiv 2102.13347). Why this one:

- Held-out errors are not fooled by what a forest learns by heart: noise gets a share near 0. The
  marginals of a forest (fANOVA, Hutter et al. 2014) give noise a share of its own, and need a
  product space, where a conditional choice has values that train nothing.
- A choice that is open only where its method is present is exchanged among such trials only.
- It works from some 16 trials on. Comparing the density of the best trials with that of all
  (PED-ANOVA, arXiv 2304.10255) would leave 2 to 5 of them to tell apart.

What was changed: each held-out trial meets several donors among all trials, not one of its own
fold. Models shrink towards the mean where trials are few, so shares are rather too low. They speak
of the configurations that the search tried, not of the whole space.

**Hypervolume** is, up to a constant, the mean over all directions from the reference point of the
best scalarised value `s(u) = min_i(u_i / direction_i)^m` (Golovin and Zhang, arXiv 2006.04655). So
what decides it is what decides `s`, averaged over directions, each weighted with the part of the
hypervolume that lies there: what makes a good large configuration and a good small one both count.

Errors are standard errors of the mean over folds and repeats, corrected for the overlap of the
training sets (Nadeau and Bengio 2003). Where predictions of held-out trials do not follow what was
measured (rank correlation), importances would mean nothing, and there are none.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autopeft.searchers.dominance import Points
from autopeft.searchers.explain.choices import Choice, Choices, Matrix, Rows
from autopeft.searchers.explain.outcomes import Outcomes

MIN_TRIALS = 16
"""Below, folds hold fewer than three trials, and chance alone gives rank correlations of 0.5."""

FOLDS, REPEATS = 5, 3
TREES = 12
"""Of a forest: shares are means over `FOLDS * REPEATS` forests, and where more trees would move
them is well within their errors."""

DONORS = 12
"""Rows from which a held-out trial takes a choice, one after the other; in each repeat others."""

DIRECTIONS = 16
LEAST_CORRELATION = 0.3
CLEAR = 2.0
"""Standard errors that a share must be away from 0."""

Values: TypeAlias = NDArray[np.float64]
Target: TypeAlias = Callable[[Points], Values]
"""Utilities `[..., m]` -> what is to be explained `[...]`."""


@dataclass(frozen=True)
class Importance:
    """How much one choice matters.

    Attributes:
        choice: Its name, such as `lora.rank`.
        share: The part of the variance between trials that goes with it.
        error: The share's standard error.
    """

    choice: str
    share: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether the share can be told from 0."""
        return self.share > CLEAR * self.error

    def to_dict(self) -> dict[str, Any]:
        """Its JSON shape."""
        plain = {"choice": self.choice, "share": self.share, "error": self.error}
        return plain | {"clear": self.clear}


@dataclass(frozen=True)
class Importances:
    """The importances of all choices for one target.

    Attributes:
        target: The quality's metric, or `hypervolume`.
        trials: Trials that they are from.
        stopped: Of these, how many were stopped early; see `explain.outcomes`.
        failed: Of these, how many diverged.
        rank_correlation: Between predictions of held-out trials and what they reached, or None.
        choices: The most important first; () where they would mean nothing.
        message: Why there are none, or "".
    """

    target: str
    trials: int
    stopped: int
    failed: int
    rank_correlation: float | None
    choices: tuple[Importance, ...]
    message: str = ""

    def basis(self) -> str:
        """What they rest on: the trials, and how well held-out trials were predicted."""
        kinds = ((self.stopped, "stopped early"), (self.failed, "diverged"))
        among = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
        plural = "" if self.trials == 1 else "s"
        text = f"{self.trials} trial{plural}{f' ({among})' if among else ''}"
        if self.rank_correlation is None:
            return text
        return f"{text}, held-out ones predicted with rank correlation {self.rank_correlation:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Their JSON shape."""
        return {
            "target": self.target,
            "trials": self.trials,
            "stopped": self.stopped,
            "failed": self.failed,
            "rank_correlation": self.rank_correlation,
            "choices": [each.to_dict() for each in self.choices],
            "message": self.message,
        }


def importances(found: Outcomes, quality: str) -> dict[str, Importances]:
    """What mattered for `quality` and, with several objectives, for `hypervolume`.

    The same outcomes give the same importances, to the last bit.

    Args:
        found: The trials.
        quality: Name of the quality's metric.

    Returns:
        By target, `quality` first.
    """
    u = found.utilities
    names = {"quality": quality} | ({"hypervolume": "hypervolume"} if u.shape[1] > 1 else {})
    if len(u) < MIN_TRIALS:
        few = f"it takes {MIN_TRIALS} trials that ended with a value to tell what mattered"
        return {key: _told(found, name, message=few) for key, name in names.items()}
    choices = Choices.of(found.configurations)
    if not choices.choices:
        message = "all trials made the same choices"
        return {key: _told(found, name, message=message) for key, name in names.items()}
    held = _Held(choices, u)
    parts: dict[str, list[tuple[float, Target]]] = {
        "quality": [(1.0, _quality)],
        "hypervolume": _scalarisations(u),
    }
    return {key: _explained(found, name, parts[key], held) for key, name in names.items()}


def ordered(told: Sequence[Importances]) -> tuple[list[str], list[str]]:
    """The choices by their shares for all targets together: clear for some, clear for none."""
    totals: dict[str, float] = {}
    clear: set[str] = set()
    for importance in (each for one in told for each in one.choices):
        totals[importance.choice] = totals.get(importance.choice, 0.0) + importance.share
        if importance.clear:
            clear.add(importance.choice)
    names = sorted(totals, key=lambda name: (-totals[name], name))
    return [n for n in names if n in clear], [n for n in names if n not in clear]


def unexplained(found: Sequence[Importances]) -> list[str]:
    """Why some targets have no importances, a sentence per reason."""
    reasons: dict[str, list[str]] = {}
    for each in found:
        if each.message:
            reason = f"{each.basis()}; {each.message}"
            reasons.setdefault(reason, []).append(each.target.replace("_", " "))
    return [f"{' and '.join(targets)}: {reason}" for reason, targets in reasons.items()]


def _quality(u: Points) -> Values:
    return np.asarray(u[..., 0])


def _scalarisations(u: Points) -> list[tuple[float, Target]]:
    """Directions with their part of the hypervolume: (weight, target)."""
    targets: list[tuple[float, Target]] = []
    for direction in _directions(u.shape[1]):

        def scalarised(points: Points, direction: Values = direction) -> Values:
            # By columns: to reduce over an axis of two or three is many times slower.
            columns = (points[..., i] / each for i, each in enumerate(direction))
            return np.asarray(reduce(np.minimum, columns) ** len(direction))

        targets.append((float(scalarised(u).max()), scalarised))
    return targets


def _directions(m: int) -> NDArray[np.float64]:
    """`[DIRECTIONS, m]` unit vectors, evenly over the positive orthant."""
    if m == 2:
        angles = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS * math.pi / 2.0
        return np.column_stack([np.sin(angles), np.cos(angles)])
    # Additive recurrence (Roberts' R_m sequence) through the normal quantile: even on the sphere.
    root = _positive_root(m)
    steps = np.array([root ** -(axis + 1) for axis in range(m)])
    even = (0.5 + np.outer(np.arange(1, 2 * DIRECTIONS + 1), steps)) % 1.0
    normal = np.vectorize(NormalDist().inv_cdf)((1.0 + even) / 2.0)
    return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))


def _positive_root(m: int) -> float:
    """The root of x^(m + 1) = x + 1 above 1."""
    x = 2.0
    for _ in range(40):
        x = (1.0 + x) ** (1.0 / (m + 1))
    return x


# -- held-out trials ------------------------------------------------------------------------------


class _Held:
    """Predictions of held-out trials, as they are and with each choice exchanged.

    Attributes:
        u: `[n, m]`, the measured utilities.
        folds: Rows of the held-out trials, repeat by repeat.
        predicted: Per fold, their utilities `[k, m]`.
        exchanged: Per fold and choice, `[k, donors, m]`.
    """

    def __init__(self, choices: Choices, u: Points) -> None:
        self.u, self.choices = u, choices.choices
        self.folds: list[Rows] = []
        self.predicted: list[Points] = []
        self.exchanged: list[list[Points]] = []
        for repeat in range(REPEATS):
            rng = np.random.default_rng(repeat)
            for test in np.array_split(rng.permutation(len(u)), FOLDS):
                self._hold_out(choices, np.sort(test), rng)

    def _hold_out(self, choices: Choices, test: Rows, rng: np.random.Generator) -> None:
        train = np.setdiff1d(np.arange(len(self.u)), test)
        predict = _fitted(choices.inputs(choices.X[train]), self.u[train], rng)
        mixed = [_mixed(choices, each, test, rng) for each in self.choices]
        rows = choices.inputs(np.concatenate([choices.X[test], *mixed]))
        first, *rest = np.split(predict(rows), np.cumsum([len(test), *map(len, mixed)])[:-1])
        self.folds.append(test)
        self.predicted.append(first)
        self.exchanged.append([each.reshape(len(test), DONORS, -1) for each in rest])

    def rank_correlation(self, target: Target) -> float | None:
        """Between predicted and measured, mean over repeats; None where either is constant."""
        found = []
        for repeat in range(REPEATS):
            folds = slice(repeat * FOLDS, (repeat + 1) * FOLDS)
            rows = np.concatenate(self.folds[folds])
            predicted = target(np.concatenate(self.predicted[folds]))
            found.append(rank_correlation(predicted, target(self.u[rows])))
        numbers = [each for each in found if each is not None]
        return sum(numbers) / len(numbers) if numbers else None

    def shares(self, target: Target) -> NDArray[np.float64]:
        """`[folds, choices]`: the growth of squared error over twice the variance."""
        y = target(self.u)
        return np.array([list(self._fold_shares(i, target, y)) for i in range(len(self.folds))])

    def _fold_shares(self, fold: int, target: Target, y: Values) -> Iterator[float]:
        measured, twice = y[self.folds[fold]], 2.0 * y.var()
        before = ((target(self.predicted[fold]) - measured) ** 2).mean()
        for each in self.exchanged[fold]:
            after = ((target(each) - measured[:, None]) ** 2).mean()
            yield float((after - before) / twice)


def _mixed(choices: Choices, choice: Choice, test: Rows, rng: np.random.Generator) -> Matrix:
    """Held-out rows with one choice from `DONORS` others each: `[len(test) * DONORS, d]`."""
    donors = rng.choice(choices.donors(choice), len(test) * DONORS)
    return choices.exchanged(choice, choices.X[np.repeat(test, DONORS)], choices.X[donors])


def _fitted(X: Matrix, u: Points, rng: np.random.Generator) -> Callable[[Matrix], Points]:
    """A random forest per objective; predicts `[k, m]` of `[k, d]`.

    Hundreds of small ones are grown, of which the checks of `RandomForestRegressor` would take
    most of the time; so its trees are grown here, each of a bootstrap sample.
    """
    from sklearn import config_context

    inputs = X.astype(np.float32)  # what trees compare
    with config_context(assume_finite=True, skip_parameter_validation=True):
        forests = [[_tree(inputs, column, rng) for _ in range(TREES)] for column in u.T]

    def predict(rows: Matrix) -> Points:
        given = rows.astype(np.float32)
        return np.column_stack(
            [sum(tree.predict(given)[:, 0] for tree in forest) / TREES for forest in forests]
        )

    return predict


def _tree(X: NDArray[np.float32], y: Values, rng: np.random.Generator) -> Any:
    """A regression tree of a bootstrap sample."""
    from sklearn.tree import DecisionTreeRegressor

    n, seed = len(X), int(rng.integers(2**31))
    drawn = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
    tree = DecisionTreeRegressor(min_samples_leaf=2, max_features=0.6, random_state=seed)
    return tree.fit(X, y, sample_weight=drawn, check_input=False).tree_


# -- from shares to words -------------------------------------------------------------------------


_NOISE = (
    "chance alone can reach {:.2f}, so importances would mean nothing: noise outweighs the "
    "choices, or it takes more trials"
)


def rank_correlation(a: Sequence[float] | Values, b: Sequence[float] | Values) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where either is constant."""
    if len(a) < 2 or np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return None
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _explained(
    found: Outcomes, target: str, parts: Sequence[tuple[float, Target]], held: _Held
) -> Importances:
    """The importances for one target, which is the weighted mean of its parts."""
    varied = [part for part in parts if np.ptp(part[1](found.utilities)) > 0.0]
    if not varied:
        return _told(found, target, message=f"all trials reached the same {target}")
    correlation = float(_weighted(varied, lambda part: held.rank_correlation(part) or 0.0))
    least = max(LEAST_CORRELATION, 2.0 / math.sqrt(len(found.utilities) - 1))
    if correlation < least:
        return _told(found, target, correlation, message=_NOISE.format(least))
    return _told(found, target, correlation, _ranked(held, _weighted(varied, held.shares)))


def _told(
    found: Outcomes,
    target: str,
    correlation: float | None = None,
    choices: tuple[Importance, ...] = (),
    *,
    message: str = "",
) -> Importances:
    n = len(found.configurations)
    return Importances(target, n, found.stopped, found.failed, correlation, choices, message)


def _weighted(parts: Sequence[tuple[float, Target]], value: Callable[[Target], Any]) -> Any:
    total = sum(weight for weight, _ in parts)
    return sum(weight / total * value(part) for weight, part in parts)


def _ranked(held: _Held, shares: NDArray[np.float64]) -> tuple[Importance, ...]:
    """The choices by their mean share, with its corrected standard error."""
    correction = 1.0 / len(shares) + 1.0 / (FOLDS - 1)
    errors = shares.std(axis=0, ddof=1) * math.sqrt(correction)
    found = [
        Importance(choice.name, float(share), float(error))
        for choice, share, error in zip(held.choices, shares.mean(axis=0), errors, strict=True)
    ]
    return tuple(sorted(found, key=lambda each: (-each.share, each.choice)))
