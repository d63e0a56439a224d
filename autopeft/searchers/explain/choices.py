"""What configurations choose, as columns of numbers.

A **choice** is one decision that a search takes, named as in a space: `lora.present`, `lora.rank`,
`lora.sites`, `lora.layers`, `training.learning_rate`. Choices are read off the configurations, not
off the space, so that a stored study needs neither its backbone nor its space to be explained.
What is chosen for a method is open only where the method is present; layers that all methods share
in every configuration are one choice, `layers`.

Notation: `X` is `[n, d]` float64, one row per configuration, one column per number that a choice
consists of; what is absent is 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration, Group
from autopeft.space.schema import Scalar
from autopeft.study.placement import SIZE_NAMES

Matrix = NDArray[np.float64]
Rows = NDArray[np.int64]

PRESENT, SITES, LAYERS = "present", "sites", "layers"


@dataclass(frozen=True)
class Choice:
    """One decision.

    Attributes:
        name: As in a space, without a number of a layer or the name of a site.
        columns: The columns of `X` that it sets.
        method: The method that it is made for, or None where it is open to all.
        presence: Whether it is the presence of the method; `columns` are then all of the method's.
    """

    name: str
    columns: tuple[int, ...]
    method: str | None = None
    presence: bool = False


@dataclass(frozen=True)
class Choices:
    """The choices of some configurations.

    Attributes:
        names: Of the columns: `lora.rank`, `lora.sites.query`, `lora.layers.count`, ...
        X: `[n, d]`, the configurations in their order.
        choices: Those that differ between the configurations.
    """

    names: tuple[str, ...]
    X: Matrix
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, configurations: Sequence[Configuration]) -> "Choices":
        """The choices of these configurations."""
        shared = all(len({group.layers for group in each.groups}) < 2 for each in configurations)
        rows = [_numbers(each, shared=shared) for each in configurations]
        names = tuple(sorted({name for row in rows for name in row}))
        table = [[row.get(name, 0.0) for name in names] for row in rows]
        X = np.array(table, dtype=np.float64).reshape(len(rows), len(names))
        return cls(names, X, _choices(names, X))

    def exchanged(self, choice: Choice, X: Matrix, donors: Matrix) -> Matrix:
        """`X` with one choice taken from other rows, and all else as it was.

        Presence brings all that the donor chose for the method, or leaves the method out, unless
        the row would be left without any method; where both rows have the method, nothing changes.
        Any other choice is exchanged where it is open in both rows.

        Args:
            choice: What to exchange.
            X: `[k, d]`.
            donors: `[k, d]`, the row that each row of `X` takes it from.
        """
        mixed, columns = X.copy(), np.array(choice.columns)
        if choice.method is None:
            mixed[:, columns] = donors[:, columns]
            return mixed
        has, gives = self._present(X, choice.method), self._present(donors, choice.method)
        if choice.presence:
            others = sum((self._present(X, m).astype(int) for m in self.methods), start=-1)
            changed = (gives & ~has) | (has & ~gives & (others > 0))
        else:
            changed = has & gives
        mixed[np.ix_(changed, columns)] = donors[np.ix_(changed, columns)]
        return mixed

    def donors(self, choice: Choice) -> Rows:
        """The rows that the choice can be taken from: where it is open."""
        if choice.method is None or choice.presence:
            return np.arange(len(self.X))
        return np.flatnonzero(self._present(self.X, choice.method))

    def inputs(self, X: Matrix) -> Matrix:
        """`X` with what follows from it: how much each method holds, and all of them together.

        A method holds its size times its layers times its sites, in doublings; with these columns
        a model need not find products by itself.
        """
        held = [self._held(X, method) for method in self.methods]
        total = np.sum(held, axis=0) if held else np.zeros(len(X))
        return np.column_stack([X, *(np.log2(1.0 + each) for each in (*held, total))])

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods that some configuration has."""
        return tuple(name.split(".")[0] for name in self.names if name.endswith(f".{PRESENT}"))

    def _present(self, X: Matrix, method: str) -> NDArray[np.bool_]:
        return np.asarray(X[:, self.names.index(f"{method}.{PRESENT}")] > 0.0)

    def _held(self, X: Matrix, method: str) -> NDArray[np.float64]:
        size = np.exp2(self._sum(X, *(f"{method}.{name}" for name in SIZE_NAMES)))
        layers = self._sum(X, f"{method}.{LAYERS}.count", f"{LAYERS}.count")
        sites = [name for name in self.names if name.startswith(f"{method}.{SITES}.")]
        n_sites = self._sum(X, *sites) if sites else 1.0
        return np.where(self._present(X, method), size * layers * n_sites, 0.0)

    def _sum(self, X: Matrix, *names: str) -> NDArray[np.float64]:
        columns = [self.names.index(name) for name in names if name in self.names]
        return np.asarray(X[:, columns].sum(axis=1))


def _choices(names: Sequence[str], X: Matrix) -> tuple[Choice, ...]:
    """The choices among the columns, without those that are the same wherever they are open."""
    found: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        found.setdefault(_choice_name(name), []).append(column)
    present = {name.removesuffix(f".{PRESENT}") for name in found if name.endswith(f".{PRESENT}")}
    kept = []
    for name, columns in found.items():
        method = name.split(".")[0] if name.split(".")[0] in present else None
        presence = name == f"{method}.{PRESENT}"
        rows = X if method is None or presence else X[X[:, names.index(f"{method}.{PRESENT}")] > 0]
        if (rows[:, columns] != rows[0, columns]).any():
            own = [i for i, each in enumerate(names) if each.startswith(f"{method}.")]
            kept.append(Choice(name, tuple(own if presence else columns), method, presence))
    return tuple(kept)


def _choice_name(column: str) -> str:
    """`lora.sites.query` is part of `lora.sites`, `layers.count` of `layers`."""
    words = column.split(".")
    return words[0] if words[0] == LAYERS else ".".join(words[:2])


def _numbers(configuration: Configuration, *, shared: bool) -> dict[str, float]:
    """A configuration as named numbers."""
    numbers: dict[str, float] = {}
    for method in configuration.methods:
        groups = [group for group in configuration.groups if group.method == method]
        numbers |= {f"{method}.{name}": value for name, value in _method(groups).items()}
        if not shared:
            numbers |= _layers(groups, f"{method}.{LAYERS}")
    if shared:
        numbers |= _layers(configuration.groups, LAYERS)
    for name, value in configuration.sparsity:
        numbers |= _flat(f"sparsity.{name}", value)
    for name, value in configuration.training:
        key = f"training.{name}"
        rate = name == "learning_rate" and float(value) > 0.0
        numbers |= {key: math.log10(float(value))} if rate else _flat(key, value)
    return numbers


def _method(groups: Sequence[Group]) -> dict[str, float]:
    """Presence, sites, and settings as their mean over the layers in use."""
    numbers = {PRESENT: 1.0}
    numbers |= {f"{SITES}.{site}": 1.0 for group in groups for site in group.sites}
    n_layers = sum(len(group.layers) for group in groups)
    for group in groups:
        for name, value in _settings(dict(group.settings)).items():
            numbers[name] = numbers.get(name, 0.0) + value * len(group.layers) / n_layers
    return numbers


def _settings(settings: Mapping[str, Scalar]) -> dict[str, float]:
    """Settings as numbers: sizes in doublings, LoRA's alpha relative to its rank."""
    numbers: dict[str, float] = {}
    rank, alpha = settings.get("rank"), settings.get("alpha")
    for name, value in settings.items():
        if name in SIZE_NAMES and float(value) > 0.0:
            numbers[name] = math.log2(float(value))
        elif name == "alpha" and rank and alpha:
            numbers["alpha_over_rank"] = math.log2(float(alpha) / float(rank))
        else:
            numbers |= _flat(name, value)
    return numbers


def _layers(groups: Sequence[Group], name: str) -> dict[str, float]:
    """Where layers lie: how many, from where to where, and their middle."""
    layers = sorted({layer for group in groups for layer in group.layers})
    if not layers:
        return {}
    return {
        f"{name}.count": float(len(layers)),
        f"{name}.first": float(layers[0]),
        f"{name}.last": float(layers[-1]),
        f"{name}.middle": sum(layers) / len(layers),
    }


def _flat(name: str, value: Scalar) -> dict[str, float]:
    """A value as a number; a word is a flag."""
    return {f"{name}.{value}": 1.0} if isinstance(value, str) else {name: float(value)}


def in_words(choice: str) -> str:
    """A choice's name as people say it: `lora.present` is "lora or not"."""
    owner, _, what = choice.partition(".")
    if what == PRESENT:
        return f"{owner.replace('_', ' ')} or not"
    words = what if owner == "training" else f"{owner} {what}"
    return words.replace("_", " ").strip()
