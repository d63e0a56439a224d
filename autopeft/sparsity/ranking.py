"""The weights of all sites in the order of one score: what a budget over sites is spent on.

A map keeps the highest weights of every site, not all of them. The order of several sites' weights
is therefore sure up to where the first of them runs out of kept ones, and nothing is said beyond.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autopeft.backbone.importance import ImportanceMap, Key
from autopeft.errors import BackboneError, Fault

Ranks = NDArray[np.int64]
UNBOUNDED = np.iinfo(np.int64).max


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

    def costs(self, known: int) -> Ranks:
        """Of the first `known` weights, of at most `number`."""
        costs = np.ones(known, np.int64)
        costs[self.number - 1 :] = self.last
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

        The number is found among all that the map can tell: where a last weight is a saving, more
        weights may cost less than fewer.

        Args:
            keys: The sites that take part.
            prices: By site.
            budget: What all may cost together.

        Returns:
            Weights of each site, up to its `Price.number`.

        Raises:
            BackboneError: The map keeps too few weights to tell, or lacks a site.
        """
        missing = [
            f"layer {layer}, {role}" for layer, role in keys if (layer, role) not in self.ranks
        ]
        if missing:
            raise BackboneError(Fault("importance", "", "; ".join(missing), "sites of the map"))
        own = [self.ranks[key][: prices[key].number] for key in keys]
        ranks, owners = _together(own)
        costs = np.concatenate(
            [prices[key].costs(len(r)) for key, r in zip(keys, own, strict=True)]
        )
        order = np.argsort(ranks)
        spent = np.cumsum(costs[order])
        taken = int(np.flatnonzero(np.append(0, spent) <= budget)[-1])
        sure = min(
            (_last(r) for key, r in zip(keys, own, strict=True) if len(r) < prices[key].number),
            default=UNBOUNDED,
        )
        left = budget - int(np.append(0, spent)[taken])
        after = ranks[order[taken]] if taken < len(ranks) else UNBOUNDED - 1
        before = ranks[order[taken - 1]] if taken else -1
        if before > sure or (left > 0 and after > sure):
            raise _unknown(budget, sum(map(len, own)))
        counts = np.bincount(owners[order[:taken]], minlength=len(keys))
        return {key: int(count) for key, count in zip(keys, counts, strict=True)}


def _together(own: Sequence[Ranks]) -> tuple[Ranks, Ranks]:
    owners = np.repeat(np.arange(len(own)), [len(ranks) for ranks in own])
    return np.concatenate(own), owners


def _last(ranks: Ranks) -> int:
    return int(ranks[-1]) if len(ranks) else -1


def _unknown(budget: int, kept: int) -> BackboneError:
    return BackboneError(
        Fault(
            "importance",
            "",
            f"a budget of {budget:,} parameters",
            f"what the {kept:,} weights that the map keeps of these sites can tell",
            "lower the budget, or measure a map that keeps more weights",
        )
    )


@lru_cache(maxsize=8)
def ranking(importance: ImportanceMap, score: str) -> Ranking:
    """A map's weights in the order of a score; of equal ones, lower layers first.

    Raises:
        BackboneError: The score was not measured.
    """
    own = importance.of(score)
    keys = sorted(own)
    values = np.concatenate([own[key].values for key in keys])
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values))
    ends = np.cumsum([len(own[key].values) for key in keys])
    return Ranking(dict(zip(keys, np.split(ranks, ends[:-1]), strict=True)))
