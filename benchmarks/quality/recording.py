"""Records a table: real trials, trained in packs by `autopeft.search`.

A search that measures at every rung and stops nothing is all that is needed, so a recording is
as resumable as a search: kill it and start it again.
"""

import time
from contextlib import closing
from pathlib import Path

import autopeft
from autopeft.api.loading import open_store
from autopeft.api.measuring import stored_map
from autopeft.backbone.importance import ImportanceMap
from autopeft.study.definition import parse_definition
from autopeft.study.progress import Listener, Progress
from autopeft.study.records import TrialState
from benchmarks.quality.tables import write_table
from benchmarks.quality.tasks import IMPORTANCE, REPEATED, SEEDS, Task


class Log:
    """Prints a line per event."""

    def on_progress(self, progress: Progress) -> None:
        """Nothing: a log has no use for it."""

    def on_event(self, text: str) -> None:
        """Something worth a line."""
        print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


def record(task: Task, *, data: Path, work: Path, tables: Path) -> Path:
    """Train what the task's table lacks, and write the table.

    Args:
        task: What to record.
        data: Folder of all data sets.
        work: Where databases, lane states and data go; what lies there is gone on with.
        tables: Where the table is written, after every study.

    Returns:
        The table's file.

    Raises:
        NotHereError: The data are not there.
    """
    folder = work / task.table
    if not (folder / "data" / "validation.csv").exists():
        task.materialise(data, folder / "data")
    first = _searched(task, folder, seed=SEEDS[0])
    studies = [first]
    found = _importance(first, folder) if task.space == IMPORTANCE else None
    path = write_table(tables, task.table, studies, importance=found)
    chosen = repeated(first)
    for seed in SEEDS[1:]:
        studies.append(_searched(task, folder, seed=seed, enqueue=chosen))
        path = write_table(tables, task.table, studies, importance=found)
    return path


def _searched(
    task: Task, folder: Path, *, seed: int, enqueue: list[dict[str, object]] | None = None
) -> autopeft.Study:
    plain = task.study(folder / "data", seed=seed, enqueue=enqueue or ())
    definition = parse_definition(plain, where=f"table {task.table}", base=None)
    print(f"{definition.study.name}: {definition.budget.trials} trials", flush=True)
    listener: Listener = Log()
    return autopeft.search(
        definition,
        storage=_storage(folder),
        output_dir=folder / definition.study.name,
        listener=listener,
    )


def _storage(folder: Path) -> str:
    return f"sqlite:///{folder / 'table.db'}"


def _importance(study: autopeft.Study, folder: Path) -> ImportanceMap:
    """The map that the study measured, with all its parts; all seeds share it."""
    definition = parse_definition(
        dict(study.record.definition), where=study.record.name, base=None
    )
    with closing(open_store(_storage(folder), create=True)) as store:
        return stored_map(definition, study.record.fingerprints["data"], store)


def repeated(study: autopeft.Study) -> list[dict[str, object]]:
    """The configurations to train with more seeds: evenly spaced in rank of quality."""
    trials = [
        trial
        for trial in study.trials()
        if trial.state is TrialState.COMPLETED and trial.baseline is None
    ]
    ranked = sorted(trials, key=lambda trial: (trial.objectives["accuracy"], trial.number))
    places = [round(i * (len(ranked) - 1) / (REPEATED - 1)) for i in range(REPEATED)]
    return [ranked[place].configuration.to_dict() for place in places]
