"""Reads the training values that a space, or one of its methods, sets."""

from collections.abc import Mapping
from typing import Any

from autopeft.space.faults import Faults
from autopeft.space.leaves import Leaf, read_leaf
from autopeft.space.schema import ParameterSchema
from autopeft.space.spellings import STUDY_KEYS, TRAINING_SPELLINGS

TRAINING_PARAMETERS = (
    ParameterSchema("learning_rate", "float", minimum=1e-8, maximum=10.0),
    ParameterSchema("weight_decay", "float", minimum=0.0, maximum=10.0),
    ParameterSchema("warmup_ratio", "float", minimum=0.0, maximum=1.0),
)
"""The training values that a space may set; all others are the study's."""

TrainingLeaves = tuple[tuple[ParameterSchema, Leaf], ...]


def read_training(raw: Any, key: str, faults: Faults) -> TrainingLeaves:
    """The leaves of a `training:` block; those with a fault are left out.

    Args:
        raw: What the file holds.
        key: Its dotted key.
        faults: Where faults are noted.
    """
    if not isinstance(raw, Mapping):
        faults.add(key, raw, "a mapping of learning_rate, weight_decay, warmup_ratio")
        return ()
    parameters = {parameter.name: parameter for parameter in TRAINING_PARAMETERS}
    for name in raw:
        if name in STUDY_KEYS:
            section, ours = STUDY_KEYS[name].split(".")
            hint = f"{ours} belongs to the study's `{section}` block; it is no dimension"
            faults.add(f"{key}.{name}", name, ", ".join(parameters), hint)
        elif name not in parameters:
            faults.unknown(f"{key}.{name}", name, parameters, TRAINING_SPELLINGS)
    leaves = []
    for name, parameter in parameters.items():
        if name in raw:
            leaf = read_leaf(raw[name], parameter, f"{key}.{name}", faults)
            leaves += [(parameter, leaf)] if leaf else []
    return tuple(leaves)
