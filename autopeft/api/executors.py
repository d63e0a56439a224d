"""Where packs run: from `execution.executor` to an executor.

One entry per name of the study file; a new executor is a function here and a name in
`autopeft.study.search_blocks`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.api.place import activations_folder
from autopeft.study.definition import StudyDefinition
from autopeft.study.progress import Stopper
from autopeft.study.records import ImportanceRecord, StudyRecord

if TYPE_CHECKING:
    from autopeft.execution.base import Executor
    from autopeft.execution.inprocess import InProcessRunner


@dataclass(frozen=True)
class Ground:
    """What executors are made from.

    Attributes:
        definition: The study's.
        record: The stored study.
        folder: Its artifacts.
        precision: As its trials train.
        micro_batch_size: Likewise.
        gradient_checkpointing: Likewise.
        probes: Whether trials are measured by themselves.
        importance: The study's map, or None.
        stopper: Asks for an early end.
        in_process: Makes the runner of this very process.
    """

    definition: StudyDefinition
    record: StudyRecord
    folder: Path
    precision: str
    micro_batch_size: int
    gradient_checkpointing: bool
    probes: bool
    importance: ImportanceRecord | None
    stopper: Stopper
    in_process: Callable[[], "InProcessRunner"]


def make_executor(ground: Ground) -> "Executor":
    """The executor that a study names."""
    return EXECUTORS[ground.definition.execution.executor](ground)


def _in_process(ground: Ground) -> "Executor":
    from autopeft.execution.inprocess import InProcessExecutor

    return InProcessExecutor(ground.in_process())


def _local(ground: Ground) -> "Executor":
    from autopeft.execution.local import Launch, LocalExecutor
    from autopeft.execution.time_limits import TimeLimits
    from autopeft.execution.worker_materials import Request, save_map
    from autopeft.training.setup import device_names

    execution, record = ground.definition.execution, ground.importance
    request = Request(
        definition=ground.definition.to_plain(),
        output_dir=str(ground.folder),
        activations=str(activations_folder(ground.folder)),
        precision=ground.precision,
        micro_batch_size=ground.micro_batch_size,
        gradient_checkpointing=ground.gradient_checkpointing,
        probes=ground.probes,
        importance=None if record is None else str(save_map(record, ground.folder)),
    )
    limit = None if execution.pack_limit == "auto" else float(execution.pack_limit)
    timed = (ground.record.facts.get("calibration") or {}).get("step_seconds") or {}
    return LocalExecutor(
        Launch(
            request=asdict(request),
            devices=device_names(execution.devices),
            folder=ground.folder,
            limits=TimeLimits(limit, {int(lanes): float(s) for lanes, s in timed.items()}),
            stopper=ground.stopper,
        )
    )


EXECUTORS: Mapping[str, Callable[[Ground], "Executor"]] = {
    "local": _local,
    "in-process": _in_process,
}
"""By `execution.executor`."""
