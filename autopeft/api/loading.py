"""Reading and steering stored studies.

Nothing here imports torch, and what a list of studies does not need is imported where it is used.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.api.place import (
    activations_folder,
    check_packages,
    output_folder,
    shown_storage,
    storage_url,
)
from autopeft.api.status import status
from autopeft.errors import Fault, NotFoundError
from autopeft.study.progress import Stopper
from autopeft.study.store import Store

if TYPE_CHECKING:
    from autopeft.api.study import Study


def open_store(
    storage: str | None = None,
    *,
    create: bool = False,
    read_only: bool = False,
    stopper: Stopper | None = None,
) -> Store:
    """The store at a URL; see `storage.open_store`."""
    check_packages()
    from storage import open_store as open_sql_store

    url = storage_url(storage)
    return open_sql_store(url, create=create, read_only=read_only, stopper=stopper)


def open_existing(storage: str | None = None, *, stopper: Stopper | None = None) -> Store | None:
    """The store for writing; None where the database is not made yet.

    Raises:
        StorageError: It cannot be used, or could not be made.
    """
    check_packages()
    from storage.filesystem import check_file
    from storage.place import parse_place

    path = parse_place(storage_url(storage)).path
    if path is None or path.exists():
        return open_store(storage, create=True, stopper=stopper)
    check_file(path, create=True, writable=True)
    return None


def load_study(
    name: str | Path | None = None,
    *,
    storage: str | None = None,
    output_dir: Path | None = None,
) -> "Study":
    """A stored study, read-only.

    Args:
        name: Its name, a study file that names it, or None where there is only one.
        storage: URL of the database.
        output_dir: Where its artifacts lie.

    Raises:
        NotFoundError: No such study, or several and none named.
        StorageError: The database cannot be read; it is never created.
    """
    from autopeft.api.study import Study

    store = open_store(storage, read_only=True)
    found = study_name(store, name)
    store.study(found)
    folder = output_folder(found, output_dir)
    return Study(store, found, output_dir=folder, storage=storage_url(storage))


def study_name(store: Store, name: str | Path | None) -> str:
    """What a STUDY argument stands for: a name, a study file, or nothing where there is one."""
    if name is None:
        names = [record.name for record in store.studies()]
        if len(names) == 1:
            return names[0]
        raise NotFoundError(
            Fault("STUDY", "", f"nothing, with {len(names)} studies stored", ", ".join(names))
        )
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.exists():
        from autopeft.study.definition import load_definition

        return load_definition(path).study.name
    return str(name)


def list_studies(storage: str | None = None) -> list[dict[str, Any]]:
    """The status of every study, oldest first."""
    store = open_store(storage, read_only=True)
    return [status(summary) for summary in store.summaries()]


def stop(name: str | Path | None = None, *, storage: str | None = None) -> dict[str, Any]:
    """Ask the coordinator of a running study to stop after its step.

    Returns:
        `{"study", "state", "running", "stop_requested"}`; nothing is asked where nobody runs it.
    """
    store = open_store(storage)
    found = study_name(store, name)
    state, running = store.study(found).state, store.holder(found) is not None
    if running:
        store.request_stop(found)
    return {
        "study": found,
        "state": state.value,
        "running": running,
        "stop_requested": running,
    }


def delete(
    name: str | Path, *, storage: str | None = None, output_dir: Path | None = None
) -> None:
    """Remove a study from the database, its saved lane states and its kept activations.

    Activations belong to a model and its data, not to one study: in a folder that other studies
    use too they stay.

    Raises:
        StudyHeldError: A coordinator holds it.
    """
    from autopeft.execution.states import STATES, remove_states

    store = open_store(storage)
    found = study_name(store, name)
    created_at = store.study(found).created_at
    store.delete_study(found)
    folder = output_folder(found, output_dir)
    remove_states(folder, created_at)
    if not any((folder / STATES).glob("*/")):
        shutil.rmtree(activations_folder(folder), ignore_errors=True)


def upgrade_storage(storage: str | None = None) -> tuple[str, str]:
    """Migrate a database to this release; its revisions before and after."""
    check_packages()
    from storage import upgrade

    return upgrade(storage_url(storage))


def copy_studies(
    source: str,
    target: str,
    studies: Sequence[str] = (),
    *,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Copy studies with their trials, curves, fronts and importance maps to another database.

    Done again, it goes on where it was cut short. Artifacts stay where they are; a study goes on
    from them when it is run with the other database and the same output folder.

    Args:
        source: URL of the database to read; nothing in it changes.
        target: URL of the other; made where it is missing.
        studies: Names, or () for all.
        on_progress: Told of a study's name, its rows that are done and all of them.

    Returns:
        `{"from", "to", "studies": [{"study", "trials", "rows", "result"}], "importances"}`, where
        the result is "copied" or "already there".

    Raises:
        StudyHeldError: A coordinator runs one of the studies.
        StudyMismatchError: The target has another study of that name.
        StorageError: One of the databases cannot be used.
    """
    check_packages()
    from storage import copy

    copied, maps = copy(source, target, studies, on_progress=on_progress)
    return {
        "from": shown_storage(source),
        "to": shown_storage(target),
        "studies": [asdict(each) for each in copied],
        "importances": maps,
    }
