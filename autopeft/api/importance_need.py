"""Who needs an importance map: studies and configurations."""

from collections.abc import Mapping
from typing import Any

from autopeft.api.problem import registered
from autopeft.configuration import Configuration
from autopeft.importance.settings import USUAL_SHARE
from autopeft.methods import registry
from autopeft.methods.units import MEASURED
from autopeft.searchers.presets import needs_map
from autopeft.space.library import load_space
from autopeft.space.schema import by_scores
from autopeft.sparsity import rules
from autopeft.study.definition import StudyDefinition
from autopeft.study.records import KEPT_SHARE


def study_needs_importance(definition: StudyDefinition) -> bool:
    """Whether a search measures before its space is bound: it has to, or was asked to.

    Raises:
        SpaceError: Faults of its space.
    """
    return definition.search.importance or study_chooses_by_scores(definition)


def study_chooses_by_scores(definition: StudyDefinition) -> bool:
    """Whether its space, baselines or enqueued configurations mean something with a map alone.

    Raises:
        SpaceError: Faults of its space.
    """
    search = definition.search
    return (
        load_space(definition.space, **registered()).measured
        or any(isinstance(name, str) and needs_map(name) for name in search.baselines)
        or any(configuration_needs_importance(plain) for plain in _written_out(definition))
    )


def _written_out(definition: StudyDefinition) -> list[Mapping[str, Any]]:
    """Configurations that the study file holds."""
    search = definition.search
    return [*search.enqueue, *(each for each in search.baselines if not isinstance(each, str))]


def share_needed(configuration: Configuration, facts: Mapping[str, Any]) -> float | None:
    """The share of single weights that a map has to keep for a configuration; None for the usual.

    Args:
        configuration: What is to be trained.
        facts: Of the map that decided of it before, if one did.
    """
    if KEPT_SHARE in facts:
        return float(facts[KEPT_SHARE])
    needed = [
        1.0 if group["smallest"] else float(group["density"])
        for group in configuration.groups
        if group.get("granularity") == "weight" and group.get("score") in MEASURED
    ]
    return max(needed) if needed and max(needed) > USUAL_SHARE else None


def configuration_needs_importance(plain: Mapping[str, Any]) -> bool:
    """Whether a configuration in plain form comes to something by scores; faults are no matter."""
    sparsity = plain.get("sparsity") or {}
    rule = rules.schemas().get(str(sparsity.get("rule", "none")))
    if rule is not None and (rule.measured or by_scores(rule.parameters, sparsity)):
        return True
    schemas = registry.schemas()
    return any(
        by_scores(schemas[name].parameters, entry)
        for name, entries in plain.items()
        if name in schemas
        for entry in entries or ()
        if isinstance(entry, Mapping)
    )
