"""Who needs an importance map: studies and configurations."""

from collections.abc import Mapping
from typing import Any

from autopeft.api.problem import registered
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.importance.settings import USUAL_SIDE, ImportanceSettings
from autopeft.methods import registry
from autopeft.searchers.presets import needs_map
from autopeft.space.library import load_space
from autopeft.space.schema import by_scores
from autopeft.sparsity import rules
from autopeft.sparsity.map_needs import share_needed, side_needed
from autopeft.study.definition import StudyDefinition
from autopeft.study.records import BLOCK_SIDE, KEPT_SHARE


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


def settings_needed(
    configuration: Configuration, anatomy: Anatomy, before: Mapping[str, Any]
) -> ImportanceSettings:
    """What a map has to be measured with for a configuration that stands alone.

    Args:
        configuration: What is to be trained.
        anatomy: The backbone.
        before: Facts of the map that decided of it before, if one did: as that one, or more.
    """
    usual = ImportanceSettings(
        keep=float(before[KEPT_SHARE]) if KEPT_SHARE in before else None,
        block=int(before.get(BLOCK_SIDE, USUAL_SIDE)),
    )
    shapes = anatomy.shapes()
    kept = dict(zip(shapes, usual.kept(list(shapes.values())), strict=True))
    share = share_needed(configuration, anatomy, kept)
    keep = usual.keep if share is None else share
    return ImportanceSettings(keep=keep, block=side_needed(configuration, usual.block))


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
