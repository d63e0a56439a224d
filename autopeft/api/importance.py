"""Importance maps of studies: taken from the store where they are, else measured and kept there.

A map belongs to a backbone, its data and the settings of the measurement, not to a study: whoever
asks first measures, and all others reuse it.
"""

from pathlib import Path

from autopeft.api.definitions import resolve_definition
from autopeft.api.loading import open_existing, open_store
from autopeft.api.measuring import ensure_importance, importance_settings, loaded_map
from autopeft.api.place import output_folder
from autopeft.backbone.importance import ImportanceMap
from autopeft.importance.settings import Head, ImportanceSettings
from autopeft.study.definition import StudyDefinition
from autopeft.study.progress import Listener, Progress, Silent, Stopper
from autopeft.study.sitting import NOT_STORED, Sitting
from autopeft.study.store import Store


def importance_map(
    study: StudyDefinition | Path | str | None = None,
    *,
    storage: str | None = None,
    output_dir: Path | None = None,
    examples: int | None = None,
    head: Head | None = None,
    again: bool = False,
    listener: Listener | None = None,
    stopper: Stopper | None = None,
) -> ImportanceMap:
    """How much every site of a study's backbone matters for its data, by every score.

    Where a study of that name is stored, with the same model and data, its map is taken from the
    store without loading either (then without blocks and single weights); else model and data are
    loaded, and the map is measured unless the store has it.

    Args:
        study: A definition, a study file, or None for the embedded default.
        storage: URL of the database; made where it is missing.
        output_dir: Where converted data go.
        examples: Training examples to read; 512 by default.
        head: `initial` or `fitted` (the default), see `ImportanceSettings`.
        again: Measure even where the store has a map, and replace it.
        listener: Watches.
        stopper: Asks for an early end.

    Returns:
        The map; its `facts` say what was measured, when, and how long it took.

    Raises:
        InputError: Faults of the study, its model or its data.
        InterruptedStudyError: Stopped meanwhile; nothing is stored.
        StorageError: The database cannot be used.
    """
    definition = resolve_definition(study)
    settings = importance_settings(definition, examples=examples, head=head)
    store = open_existing(storage)
    if store is not None and not again:
        found = known_map(definition, store, settings)
        if found is not None:
            return found
    from autopeft.api.materials import study_materials  # here: the rest needs no torch

    listener = listener or Silent()
    folder = output_folder(definition.study.name, output_dir)
    listener.on_progress(Progress(definition.study.name, "loading", 0, 0))
    sitting = Sitting(stopper)
    with sitting.preparing(definition.study.name, NOT_STORED):
        materials = study_materials(definition, folder, caches=False)
        ensured = ensure_importance(
            materials,
            store,
            settings=settings,
            study=definition.study.name,
            listener=listener,
            sitting=sitting,
            again=again,
        )
    if ensured.record is not None:
        store = store or open_store(storage, create=True)
        store.keep_importance(ensured.record)
    return ensured.importance


def known_map(
    definition: StudyDefinition, store: Store, settings: ImportanceSettings
) -> ImportanceMap | None:
    """The stored map of the stored study of that name, where model and data are the same.

    Its channels alone; nothing is loaded, so that changes of the files themselves do not show.
    """
    name, plain = definition.study.name, definition.to_plain()
    record = next((each for each in store.studies() if each.name == name), None)
    if record is None or any(record.definition.get(b) != plain[b] for b in ("model", "data")):
        return None
    fingerprints = record.fingerprints
    for found in store.importances(backbone=fingerprints["backbone"], data=fingerprints["data"]):
        if found.settings == settings.to_dict(definition.training.batch_size):
            return loaded_map(found)
    return None
