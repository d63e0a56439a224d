"""How much of what matters a configuration trains: an importance map as features.

A score says what share of all importance each matrix holds. What sits on a sub-layer counts for
the matrices inside it, in equal parts; a prefix for keys and values, which it extends, and so
what else brings tokens; what changes hidden states for the maps that read or make them.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache

from autopeft.backbone.importance import ImportanceMap, Key

GRADIENTS = ("fisher", "sensitivity")
"""Scores that tell how the loss answers to a change: the first that is measured."""

ACTIVATIONS = "activation"
"""A score that reads no labels, beside it."""

INSIDE: Mapping[str, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "output"),
    "ffn": ("up", "gate", "down"),
    "attention_norm": ("query", "key", "value"),
    "attention_post_norm": ("output",),
    "ffn_norm": ("up", "gate"),
    "ffn_post_norm": ("down",),
}
"""The matrices that a site without one of its own stands for; methods without sites say theirs."""

Shares = Mapping[Key, float]


def coverage(params: Mapping[Key, int], importance: ImportanceMap | None) -> dict[str, float]:
    """The features of a configuration; {} where nothing is measured.

    `coverage` is the mean over all matrices of log(1 + parameters), each weighted by its share of
    the score; `covered` is the share of the matrices that have any.

    Args:
        params: Parameters by layer and site.
        importance: The backbone's map.
    """
    if importance is None:
        return {}
    features: dict[str, float] = {}
    for prefix, shares in _shares(importance).items():
        counts = _by_matrix(params, shares)
        features[f"{prefix}coverage"] = sum(
            shares[key] * math.log1p(count) for key, count in counts.items()
        )
        features[f"{prefix}covered"] = sum(shares[key] for key in counts)
    return features


@lru_cache(maxsize=8)
def _shares(importance: ImportanceMap) -> dict[str, Shares]:
    """Shares of the matrices by the prefix of their features' names."""
    scores = {"": next((name for name in GRADIENTS if name in importance.scores), None)}
    scores[f"{ACTIVATIONS} "] = ACTIVATIONS if ACTIVATIONS in importance.scores else None
    shares: dict[str, Shares] = {}
    for prefix, score in scores.items():
        sites = importance.sites(score) if score else {}
        total = sum(sites.values())
        if total > 0.0:
            shares[prefix] = {key: own / total for key, own in sites.items()}
    return shares


def _by_matrix(params: Mapping[Key, int], shares: Shares) -> dict[Key, float]:
    """Parameters by matrix; matrices without any are left out."""
    counts: dict[Key, float] = defaultdict(float)
    for (layer, site), count in params.items():
        keys = [(layer, role) for role in matrices_of(site) if (layer, role) in shares]
        for key in keys if count else ():
            counts[key] += count / len(keys)
    return counts


@lru_cache(maxsize=1024)
def matrices_of(site: str) -> tuple[str, ...]:
    """Those of a site; of a method's name, where it has no sites, those that it stands for."""
    if site in INSIDE:
        return INSIDE[site]
    from autopeft.methods import registry  # here: methods import torch, and few ask

    own = registry[site].stands_for if site in registry.names() else ()
    return own or (site,)
