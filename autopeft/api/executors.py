"""Where packs run: from `execution.executor` to an executor.

One entry per name of the study file; a new executor is a function here and a name in
`autopeft.study.search_blocks`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.api.place import activations_folder
from autopeft.errors import Fault, InputError
from autopeft.study.definition import StudyDefinition
from autopeft.study.progress import Stopper
from autopeft.study.records import ImportanceRecord, StudyRecord

if TYPE_CHECKING:
    from autopeft.execution.base import Executor
    from autopeft.execution.inprocess import InProcessRunner
    from autopeft.execution.spare import Spare
    from autopeft.execution.time_limits import TimeLimits


IN_PROCESS = "in-process"
"""The executor whose packs train in this very process."""


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
        importance: Reads the study's map, if it has one: only runners elsewhere need it.
        stopper: Asks for an early end.
        in_process: Makes the runner of this very process.
        spare: A runner's process that was begun before, or None.
    """

    definition: StudyDefinition
    record: StudyRecord
    folder: Path
    precision: str
    micro_batch_size: int
    gradient_checkpointing: bool
    probes: bool
    importance: Callable[[], ImportanceRecord | None]
    stopper: Stopper
    in_process: Callable[[], "InProcessRunner"]
    spare: "Spare | None" = None


def make_executor(ground: Ground) -> "Executor":
    """The executor that a study names."""
    return EXECUTORS[ground.definition.execution.executor](ground)


def _in_process(ground: Ground) -> "Executor":
    from autopeft.execution.heap import tensors_apart
    from autopeft.execution.inprocess import InProcessExecutor
    from autopeft.training.setup import device_of

    device = device_of(ground.definition.execution.devices)
    if ground.gradient_checkpointing and device.type == "cpu":
        tensors_apart()  # as a runner does
    return InProcessExecutor(ground.in_process())


def _local(ground: Ground) -> "Executor":
    from autopeft.execution.local import Launch, LocalExecutor
    from autopeft.training.setup import device_names

    devices = device_names(ground.definition.execution.devices)
    return LocalExecutor(
        Launch(
            request=_request(ground),
            devices=devices,
            folder=ground.folder,
            limits=_limits(ground, devices[0]),
            stopper=ground.stopper,
            spare=ground.spare,
        )
    )


def _ray(ground: Ground) -> "Executor":
    from autopeft.execution.ray_cluster import Cluster
    from autopeft.execution.ray_runners import RayExecutor, RayLaunch, workers_of
    from autopeft.execution.shipping import study_parcels

    asked, request = ground.definition.execution.ray, _request(ground)
    cluster = Cluster(asked.address)
    try:
        workers, needs = workers_of(cluster.nodes, asked)
        _check_alike(ground, needs.device)
    except InputError:
        cluster.close()
        raise
    launch = RayLaunch(
        request=request,
        parcels=study_parcels(request),
        workers=workers,
        needs=needs,
        folder=ground.folder,
        limits=_limits(ground, needs.device),
        stopper=ground.stopper,
    )
    return RayExecutor(cluster, launch)


def _check_alike(ground: Ground, device: str) -> None:
    """What was measured here when the study was created has to be what runners measure.

    Raises:
        InputError: A study with measured costs would train on another kind of device.
    """
    here = ground.record.facts.get("device", device)
    if ground.probes and here != device:
        where = f"study {ground.record.name}"
        allowed = f"{here}, on which its costs were measured when it was created"
        hint = "create it on a node like those that train"
        raise InputError(Fault(where, "execution.ray.gpus", device, allowed, hint))


def _request(ground: Ground) -> dict[str, Any]:
    """What a runner in another process loads."""
    from autopeft.execution.worker_materials import Request, save_map

    record = ground.importance()
    request = Request(
        definition=ground.definition.to_plain(),
        output_dir=str(ground.folder),
        activations=str(activations_folder(ground.folder)),
        precision=ground.precision,
        micro_batch_size=ground.micro_batch_size,
        gradient_checkpointing=ground.gradient_checkpointing,
        probes=ground.probes,
        importance=None if record is None else str(save_map(record, ground.folder)),
        fingerprints=dict(ground.record.fingerprints),
    )
    return asdict(request)


def _limits(ground: Ground, device: str) -> "TimeLimits":
    """How long a pack may take; what was timed counts for the kind of device it was timed on."""
    from autopeft.execution.time_limits import TimeLimits

    given, facts = ground.definition.execution.pack_limit, ground.record.facts
    timed = (facts.get("calibration") or {}).get("step_seconds") or {}
    if facts.get("device") != device.partition(":")[0]:
        timed = {}
    return TimeLimits(
        None if given == "auto" else float(given),
        {int(lanes): float(seconds) for lanes, seconds in timed.items()},
    )


EXECUTORS: Mapping[str, Callable[[Ground], "Executor"]] = {
    "local": _local,
    IN_PROCESS: _in_process,
    "ray": _ray,
}
"""By `execution.executor`."""
