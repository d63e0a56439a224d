"""An emulator on top of a recorded table: the learning curve of any configuration of the space.

Trees, so that it is of another family than the Gaussian process that searches it, and over plain
features of its own (sizes by method and layer), not over the searcher's. All rungs of a curve come
from the same trees, and noise is drawn as whole curves from what repeats with other seeds showed,
so that rungs hang together as they do in training.
"""

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import KFold

from autopeft.configuration import Configuration
from autopeft.searchers.base import Problem

Curves = NDArray[np.float64]
"""`[n, 2 rungs]`: accuracies at every rung, then logarithms of losses at every rung."""

TREES = 200

LEAF = 2
"""Trials of a leaf at least: a little smoothing, as one trial is one noisy seed."""

NEAREST = 6
"""Repeated configurations, nearest in accuracy, whose noise a configuration is given."""


@dataclass(frozen=True)
class Table:
    """What was recorded, one row per configuration.

    Attributes:
        rungs: Shares of the budget, ascending.
        configurations: `n` of them.
        curves: `[n, 2 rungs]`, mean over seeds.
        deviations: `[m, seeds, 2 rungs]` of the `m` configurations that were repeated, from their
            means, scaled to be of the variance of one seed.
        levels: `[m]` mean final accuracies of those.
        bounds: `[2, 2 rungs]`: the lowest and the highest value that any training measured.
        seconds: Mean seconds of training of a trial.
    """

    rungs: tuple[float, ...]
    configurations: tuple[Configuration, ...]
    curves: Curves
    deviations: NDArray[np.float64]
    levels: NDArray[np.float64]
    bounds: NDArray[np.float64]
    seconds: float

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "Table":
        """The complete curves of a table's rows."""
        rows = rows.dropna(subset=["rung", "accuracy", "loss"])
        rows = rows.assign(loss=np.log(rows["loss"].clip(lower=1e-6)))
        index, measured = ["hash", "seed"], ["accuracy", "loss"]
        wide = rows.pivot_table(index=index, columns="rung", values=measured)[measured].dropna()
        means = wide.groupby(level="hash").mean()
        plain = rows.drop_duplicates("hash").set_index("hash")["configuration"]
        counts = wide.groupby(level="hash").size()
        repeated = counts.index[counts == counts.max()] if counts.max() > 1 else counts.index[:0]
        seeds = int(counts.max())
        scale = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
        deviations = np.array(
            [(wide.loc[each].to_numpy() - means.loc[each].to_numpy()) * scale for each in repeated]
        ).reshape(len(repeated), seeds, wide.shape[1])
        return cls(
            rungs=tuple(float(rung) for rung in wide["accuracy"].columns),
            configurations=tuple(
                Configuration.from_dict(json.loads(plain[each])) for each in means.index
            ),
            curves=means.to_numpy(),
            deviations=deviations,
            levels=means.loc[repeated, ("accuracy", 1.0)].to_numpy(),
            bounds=np.array([wide.min(), wide.max()]),
            seconds=float(rows.drop_duplicates(["hash", "seed"])["train_seconds"].mean()),
        )


class Emulator:
    """Curves of any configuration: means without noise, and measurements with it.

    Args:
        table: What it is fitted to.
        problem: Gives exact parameter counts.
    """

    def __init__(self, table: Table, problem: Problem) -> None:
        self.table, self._problem = table, problem
        self.rungs = table.rungs
        self._columns = _columns([self._plain(each) for each in table.configurations])
        self._trees = _trees().fit(self._matrix(table.configurations), table.curves)
        self._known: dict[str, Curves] = {}

    def curve(self, configuration: Configuration) -> Curves:
        """The mean values at every rung, `[2 rungs]`, without noise."""
        if configuration.hash not in self._known:
            found = self._trees.predict(self._matrix([configuration]))[0]
            self._known[configuration.hash] = found
        return self._known[configuration.hash]

    def final(self, configuration: Configuration) -> float:
        """The mean accuracy at the full budget, without noise."""
        return float(self.curve(configuration)[len(self.rungs) - 1])

    def measured(self, configuration: Configuration, seed: int) -> Curves:
        """What a training with a seed measures at every rung, `[2 rungs]`; always the same.

        Nothing is better than the best that was recorded: where one seed of a configuration
        collapses, the others lie far above its mean, and no higher than others of the task.

        Raises:
            ValueError: No configuration of the table was repeated.
        """
        if not len(self.table.deviations):
            raise ValueError("nothing was recorded with several seeds: the noise is unknown")
        mean, rungs = self.curve(configuration), len(self.rungs)
        near = np.argsort(np.abs(self.table.levels - mean[rungs - 1]), kind="stable")[:NEAREST]
        rng = np.random.default_rng([seed, zlib.crc32(configuration.hash.encode())])
        drawn = self.table.deviations[
            rng.choice(near), rng.integers(self.table.deviations.shape[1])
        ]
        n, found = self._problem.n_validation, np.clip(mean + drawn, *self.table.bounds)
        found[:rungs] = np.round(found[:rungs] * n) / n
        return np.asarray(found)

    def held_out(self, folds: int = 10) -> dict[str, float]:
        """How well trees predict rows that they were not fitted to, at the full budget.

        Returns:
            `spearman`, `rmse` (accuracy), `noise` (the standard deviation of one seed) and `sd`
            (of the recorded accuracies).
        """
        X, Y = self._matrix(self.table.configurations), self.table.curves
        predicted = np.empty_like(Y)
        for train, test in KFold(folds, shuffle=True, random_state=0).split(X):
            predicted[test] = _trees().fit(X[train], Y[train]).predict(X[test])
        place = len(self.rungs) - 1
        final, found = Y[:, place], predicted[:, place]
        deviations = self.table.deviations[..., place]
        return {
            "spearman": float(spearmanr(final, found).statistic),
            "rmse": float(np.sqrt(np.mean((final - found) ** 2))),
            "noise": float(np.sqrt(np.mean(deviations**2))) if deviations.size else math.nan,
            "sd": float(final.std()),
        }

    def _matrix(self, configurations: Sequence[Configuration]) -> NDArray[np.float64]:
        rows = [self._plain(each) for each in configurations]
        return np.array([[row.get(name, 0.0) for name in self._columns] for row in rows])

    def _plain(self, configuration: Configuration) -> dict[str, float]:
        """Sizes by method and layer, sites, the learning rate, the count of parameters.

        `update` is the logarithm of rate times root of size: about how far Adam moves an output in
        a step. It halves the squared error on held-out rows of TREC-6.
        """
        rate = math.log10(configuration.training_value("learning_rate"))
        parameters = math.log10(1 + self._problem.known(configuration)["trainable_params"])
        found = {
            "learning rate": rate,
            "parameters": parameters,
            "update": rate + parameters / 2,
            "lowest": float(min(configuration.layers, default=0)),
            "layers": float(len(configuration.layers)),
        }
        for group in configuration.groups:
            settings = dict(group.settings)
            size = next(float(settings[k]) for k in ("rank", "size", "length") if k in settings)
            found[f"{group.method} size"] = math.log2(1 + size)
            found[f"{group.method} layers"] = float(len(group.layers))
            found[f"{group.method} top"] = float(1 + max(group.layers))
            found[f"{group.method} update"] = rate + math.log10(1 + size * len(group.layers)) / 2
            found |= {f"{group.method} {site}": 1.0 for site in group.sites or ()}
            for layer in group.layers:
                key = f"{group.method} @{layer}"
                found[key] = found.get(key, 0.0) + math.log2(1 + size)
        return found


def _columns(rows: Sequence[dict[str, float]]) -> tuple[str, ...]:
    return tuple(sorted({name for row in rows for name in row}))


def _trees() -> ExtraTreesRegressor:
    return ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, random_state=0, n_jobs=1)
