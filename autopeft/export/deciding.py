"""Asks an importance map what it decides of a configuration; see `autopeft.export.decision`."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import ImportanceMap
from autopeft.configuration import Configuration, Group
from autopeft.counting import placed_groups, resolved
from autopeft.export.decision import Decision, digest_of
from autopeft.methods import registry
from autopeft.space.schema import by_scores
from autopeft.sparsity import rules

_DIGITS = 4
"""Significant digits of the scores' sums: they are read by people alone."""


def used_scores(configuration: Configuration) -> frozenset[str]:
    """Names of the scores of an importance map that decide what a configuration trains."""
    named = {str(group["score"]) for group in configuration.groups if _is_scored(group)}
    if rules.measured(configuration):
        named.add(str(dict(configuration.sparsity)["score"]))
    return frozenset(named)


def decided(configuration: Configuration, anatomy: Anatomy) -> Decision | None:
    """What an anatomy's importance map decides of a configuration; None where it decides nothing.

    Raises:
        BackboneError: The map lacks a score or a site, or there is none.
    """
    used = used_scores(configuration)
    if not used:
        return None
    importance = anatomy.measured()
    trained, chosen = resolved(configuration, anatomy), dict(_chosen(configuration, anatomy))
    return Decision(
        trained,
        chosen,
        importance.fingerprint,
        importance.examples,
        importance.facts,
        {score: _sums(importance, score, configuration) for score in sorted(used)},
        digest_of(configuration, trained, chosen),
    )


def _is_scored(group: Group) -> bool:
    return by_scores(registry[group.method].schema.parameters, dict(group.settings))


def _chosen(
    configuration: Configuration, anatomy: Anatomy
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    for group, place in placed_groups(configuration, anatomy):
        index = registry[group.method].scored_index(group, place, anatomy.measured())
        if index is not None:
            yield f"{group.method}.{place.layer}.{place.site}", index.numpy()


def _sums(importance: ImportanceMap, score: str, configuration: Configuration) -> dict[str, float]:
    """Of the layers that a configuration occupies."""
    return {
        f"{layer}.{role}": float(f"{total:.{_DIGITS}g}")
        for (layer, role), total in sorted(importance.sites(score).items())
        if layer in configuration.layers
    }
