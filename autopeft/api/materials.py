"""A study's backbone and data, checked and loaded."""

from pathlib import Path

from autopeft.api.checks import study_faults
from autopeft.api.place import activations_folder
from autopeft.errors import InputError
from autopeft.study.definition import StudyDefinition
from autopeft.study.metrics import DENSITY
from autopeft.training import setup
from autopeft.training.caching import cache_budget


def study_materials(
    definition: StudyDefinition, folder: Path, *, caches: bool = True
) -> setup.Materials:
    """Everything that a study trains with.

    Args:
        definition: What the study file says.
        folder: Where artifacts go.
        caches: Whether activations of the frozen backbone may be kept.

    Raises:
        InputError: Faults of the model, the data or the space.
    """
    where = f"study {definition.study.name}"
    if faults := study_faults(definition, where=where, output_dir=folder):
        raise InputError(faults)
    device = setup.device_name(definition.execution.devices)
    budget = cache_budget(
        definition.execution.cache_memory,
        definition.execution.cache_disk,
        device=device,
        folder=activations_folder(folder),
    )
    materials = setup.load_materials(
        definition.model,
        definition.data,
        definition.training,
        quality=definition.objectives[0].metric,
        seed=definition.study.seed,
        device=device,
        output_dir=folder,
        cache=budget if caches else None,
    )
    return setup.with_settings(materials, density=DENSITY in definition.reached)
