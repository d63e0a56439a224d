"""A baseline that a study writes out: today's configuration, whatever the space may hold."""

from collections.abc import Mapping
from typing import Any

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.errors import Fault
from autopeft.methods import registry
from autopeft.sparsity import rules
from autopeft.study.configuration_check import check_configuration
from autopeft.study.configuration_form import complete_configuration


def own_baseline(
    plain: Mapping[str, Any],
    anatomy: Anatomy,
    *,
    training: Mapping[str, float],
    rates: tuple[float, ...],
    key: str,
) -> tuple[list[Configuration], list[Fault]]:
    """The configuration at its own learning rate, or at each of `rates` where it gives none.

    Args:
        plain: As in `search.enqueue`.
        anatomy: The backbone.
        training: Weight decay and warm-up of the study.
        rates: Learning rates.
        key: Its dotted key in the study.

    Returns:
        The configurations, and faults of form, meaning and size.
    """
    methods, known = registry.schemas(), rules.schemas()
    shape = anatomy.shape(registry.carried_by(anatomy))
    faults = check_configuration(plain, methods, shape, "study", rules=known, key=key)
    if faults:
        return [], faults
    own = plain.get("training", {}).get("learning_rate")
    found = [
        complete_configuration(plain, methods, {**training, "learning_rate": rate}, rules=known)
        for rate in ((own,) if own is not None else rates)
    ]
    if anatomy.importance is not None or not rules.measured(found[0]):
        faults = [
            Fault("study", f"{key}.{each.key}", each.given, each.allowed, each.hint)
            for each in counting.faults(found[0], anatomy)
        ]
    return found, faults
