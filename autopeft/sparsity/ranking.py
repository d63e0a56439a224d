"""The weights of all sites in the order of one score: what a budget over sites is spent on.

A map keeps the highest weights of every site, not all of them unless told so (by default a tenth;
less of a large backbone, see `autopeft.importance.settings.MOST_WEIGHTS`), and no site gives more
single weights than those: what a budget has left goes to the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autopeft.backbone.importance import ImportanceMap, Key
from autopeft.errors import BackboneError, Fault

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class Price:
    """What the highest weights of one site cost, the most important first.

    Attributes:
        number: They cost 1 each up to the one before this; this one costs `last`; those after it
            nothing.
        last: May be negative.
    """

    number: int
    last: int = 1

    def costs(self) -> Ranks:
        """Of the first `number` weights."""
        costs = np.ones(self.number, np.int64)
        costs[-1:] = self.last
        return costs


@dataclass(frozen=True)
class Ranking:
    """One score's order.

    Attributes:
        ranks: Of every site's kept weights, ascending, among those of all sites; no two are equal.
    """

    ranks: Mapping[Key, Ranks]

    def bought(
        self, keys: Sequence[Key], prices: Mapping[Key, Price], budget: int
    ) -> dict[Key, int]:
        """The largest number of highest weights that keeps a budget, by site.

        The number is found among all that the map keeps: where a last weight is a saving, more
        weights may cost less than fewer.

        Args:
            keys: The sites that take part.
            prices: By site; of no more weights than the map keeps of it (`kept`).
            budget: What all may cost together.

        Returns:
            Weights of each site, up to its `Price.number`.
        """
        own = [self.ranks[key][: prices[key].number] for key in keys]
        ranks, owners = _together(own)
        costs = np.concatenate([prices[key].costs() for key in keys])
        order = np.argsort(ranks)
        spent = np.cumsum(costs[order])
        taken = int(np.flatnonzero(np.append(0, spent) <= budget)[-1])
        counts = np.bincount(owners[order[:taken]], minlength=len(keys))
        return {key: int(count) for key, count in zip(keys, counts, strict=True)}

    def kept(self, keys: Sequence[Key]) -> dict[Key, int]:
        """How many weights the map keeps of each site.

        Raises:
            BackboneError: It lacks a site.
        """
        missing = [
            f"layer {layer}, {role}" for layer, role in keys if (layer, role) not in self.ranks
        ]
        if missing:
            raise BackboneError(Fault("importance", "", "; ".join(missing), "sites of the map"))
        return {key: len(self.ranks[key]) for key in keys}


def _together(own: Sequence[Ranks]) -> tuple[Ranks, Ranks]:
    owners = np.repeat(np.arange(len(own)), [len(ranks) for ranks in own])
    return np.concatenate(own), owners


@lru_cache(maxsize=8)
def ranking(importance: ImportanceMap, score: str, *, smallest: bool = False) -> Ranking:
    """A map's weights in the order of a score; of equal ones, lower layers first.

    Args:
        importance: The map.
        score: One of its scores.
        smallest: The lowest first, of a map that keeps all weights.

    Raises:
        BackboneError: The score was not measured.
    """
    own = importance.of(score)
    keys = sorted(own)
    worth = [own[key].values[::-1] if smallest else -own[key].values for key in keys]
    values = np.concatenate(worth)
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    ends = np.cumsum([len(own[key].values) for key in keys])
    return Ranking(dict(zip(keys, np.split(ranks, ends[:-1]), strict=True)))
