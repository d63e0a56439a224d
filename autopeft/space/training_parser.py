"""Reads the training values that a space, or one of its methods, sets."""

from collections.abc import Mapping
from typing import Any

from autopeft.space.faults import Faults
from autopeft.space.leaves import (
    Leaf,
    can_matter,
    default_leaf,
    parents_first,
    read_leaf,
    refuse_unused,
)
from autopeft.space.schema import ParameterSchema
from autopeft.space.spellings import STUDY_KEYS, TRAINING_SPELLINGS
from autopeft.space.training import TRAINING_PARAMETERS

TrainingLeaves = tuple[tuple[ParameterSchema, Leaf], ...]


def read_training(raw: Any, key: str, faults: Faults) -> TrainingLeaves:
    """The leaves of a `training:` block; those with a fault are left out.

    Args:
        raw: What the file holds.
        key: Its dotted key.
        faults: Where faults are noted.
    """
    if not isinstance(raw, Mapping):
        known = ", ".join(parameter.name for parameter in TRAINING_PARAMETERS)
        faults.add(key, raw, f"a mapping of {known}")
        return ()
    parameters = {each.name: each for each in parents_first(TRAINING_PARAMETERS)}
    _refuse_unknown(raw, key, parameters, faults)
    off = {each.name: default_leaf(each) for each in parameters.values() if each.tacit}
    leaves: dict[str, Leaf] = {}
    for name, parameter in parameters.items():
        if name not in raw:
            continue
        if not can_matter(parameter, off | leaves):
            refuse_unused(parameter, raw[name], f"{key}.{name}", faults)
        elif leaf := read_leaf(raw[name], parameter, f"{key}.{name}", faults):
            leaves[name] = leaf
    return tuple((parameters[name], leaf) for name, leaf in leaves.items())


def _refuse_unknown(
    raw: Mapping[str, Any], key: str, parameters: Mapping[str, ParameterSchema], faults: Faults
) -> None:
    for name in raw:
        if name in STUDY_KEYS:
            section, ours = STUDY_KEYS[name].split(".")
            hint = f"{ours} belongs to the study's `{section}` block; it is no dimension"
            faults.add(f"{key}.{name}", name, ", ".join(parameters), hint)
        elif name not in parameters:
            faults.unknown(f"{key}.{name}", name, parameters, TRAINING_SPELLINGS)
