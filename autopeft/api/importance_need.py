"""Who needs an importance map: studies, spaces, configurations."""

from collections.abc import Mapping
from typing import Any

from autopeft.methods import registry
from autopeft.space.library import load_space
from autopeft.sparsity import rules
from autopeft.study.definition import StudyDefinition

SPARSE = "sparse"
"""The method that trains chosen weights: what it chooses by is a score."""


def study_needs_importance(definition: StudyDefinition) -> bool:
    """Whether a search measures before its space is bound: it has to, or was asked to.

    Raises:
        SpaceError: Faults of its space.
    """
    return definition.search.importance or study_chooses_by_scores(definition)


def study_chooses_by_scores(definition: StudyDefinition) -> bool:
    """Whether the study's space or enqueued configurations mean something with a map alone.

    Raises:
        SpaceError: Faults of its space.
    """
    space = load_space(definition.space, schemas=registry.schemas())
    return space_needs_importance(space.block) or any(
        configuration_needs_importance(plain) for plain in definition.search.enqueue
    )


def space_needs_importance(block: Mapping[str, Any]) -> bool:
    """Whether a space's block names a method, a rule or layers that are chosen by scores."""
    methods: Mapping[str, Any] = block.get("methods") or {}
    places = [block, *(each for each in methods.values() if isinstance(each, Mapping))]
    return (
        SPARSE in methods
        or any(_by_importance(place.get("layers")) for place in places)
        or any(_is_measured(rule) for rule in _choices(block.get("sparsity")))
    )


def configuration_needs_importance(plain: Mapping[str, Any]) -> bool:
    """Whether a configuration in plain form comes to something by scores."""
    return SPARSE in plain or any(_is_measured(rule) for rule in _choices(plain.get("sparsity")))


def _by_importance(layers: Any) -> bool:
    return isinstance(layers, Mapping) and layers.get("mode") == "importance"


def _choices(sparsity: Any) -> list[str]:
    """The rules that a `sparsity` block names: one, or those of a choice."""
    rule = sparsity.get("rule") if isinstance(sparsity, Mapping) else None
    if isinstance(rule, Mapping):
        return [str(each) for each in rule.get("choice") or ()]
    return [] if rule is None else [str(rule)]


def _is_measured(rule: str) -> bool:
    schema = rules.schemas().get(rule)
    return schema is not None and schema.measured
