"""What a runner loads of a study, in a process of its own: backbone, data, importance."""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autopeft.errors import Fault, InputError
from autopeft.execution.heap import tensors_apart
from autopeft.execution.inprocess import InProcessRunner
from autopeft.execution.probe import SoloProbe
from autopeft.importance.chance import with_random
from autopeft.importance.stored import from_record
from autopeft.study.definition import StudyDefinition, parse_definition
from autopeft.study.metrics import DENSITY
from autopeft.study.records import ImportanceRecord
from autopeft.training import setup
from autopeft.training.caching import cache_budget


@dataclass(frozen=True)
class Request:
    """What a runner has to know.

    Attributes:
        definition: The study's, plain.
        output_dir: Where its artifacts lie.
        activations: Where kept activations go.
        precision: As the study trains.
        micro_batch_size: Likewise.
        gradient_checkpointing: Likewise.
        probes: Whether trials are measured by themselves.
        importance: The file of the study's importance map, or None where it needs none.
        fingerprints: Of the study's `backbone` and `data`, with which the runner's own are
            compared: it may have them of another machine.
    """

    definition: Mapping[str, Any]
    output_dir: str
    activations: str
    precision: str
    micro_batch_size: int
    gradient_checkpointing: bool
    probes: bool
    importance: str | None
    fingerprints: Mapping[str, str]


def build_runner(request: Mapping[str, Any]) -> InProcessRunner:
    """The runner of a `load` command: a `Request`, `device`, `index`, and how many `runners`.

    Raises:
        InputError: Model or data cannot be loaded (any more).
    """
    plain = dict(request)
    device, index, runners = plain.pop("device"), plain.pop("index"), plain.pop("runners")
    asked = Request(**plain)
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device if ":" in device else f"{device}:0"))
    elif runners > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // runners))
    if device == "cpu" and asked.gradient_checkpointing:
        tensors_apart()
    definition = parse_definition(asked.definition, where="study", base=None)
    materials = _materials(asked, definition, device, index, runners)
    trainer = materials.trainer
    probe = SoloProbe(
        trainer,
        materials.data,
        metrics=definition.measured,
        max_length=definition.data.max_length,
    )
    return InProcessRunner(trainer, probe if asked.probes else None)


def _materials(
    asked: Request, definition: StudyDefinition, device: str, index: int, runners: int
) -> setup.Materials:
    execution, folder = definition.execution, Path(asked.activations)
    budget = cache_budget(
        execution.cache_memory,
        execution.cache_disk,
        device=device,
        folder=folder / f"runner-{index}" if index else folder,
        runners=runners,
    )
    materials = setup.load_materials(
        definition.model,
        definition.data,
        definition.training,
        quality=definition.objectives[0].metric,
        seed=definition.study.seed,
        device=device,
        output_dir=Path(asked.output_dir),
        cache=budget,
    )
    check_same(materials, asked.fingerprints)
    if asked.importance is not None:
        found = with_random(from_record(load_map(Path(asked.importance))), definition.study.seed)
        backbone = materials.backbone
        anatomy = replace(backbone.anatomy, importance=found)
        materials = setup.with_backbone(materials, replace(backbone, anatomy=anatomy))
    return setup.with_settings(
        materials,
        precision=asked.precision,
        micro_batch_size=asked.micro_batch_size,
        gradient_checkpointing=asked.gradient_checkpointing,
        density=DENSITY in definition.reached,
    )


def check_same(materials: setup.Materials, expected: Mapping[str, str]) -> None:
    """Refuse to train on what is not the study's.

    Raises:
        InputError: Backbone or data differ from the study's.
    """
    found = {"backbone": materials.backbone.fingerprint, "data": materials.data.fingerprint}
    keys = {"backbone": "model.name_or_path", "data": "data.source"}
    host = socket.gethostname()
    faults = [
        Fault(f"{keys[name]} on {host}", "fingerprint", value[:12], f"the study's {theirs[:12]}")
        for name, value in found.items()
        if (theirs := expected.get(name, value)) != value
    ]
    if faults:
        raise InputError(faults)


# -- the importance map, as a file ----------------------------------------------------------------

UNITS, FINE = ".units.npz", ".fine.npz"


def save_map(record: ImportanceRecord, folder: Path) -> Path:
    """Write a map's record for runners to read; the file that names it."""
    path = folder / "importance" / f"{record.key[:32]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(UNITS).write_bytes(record.units)
    if record.fine is not None:
        path.with_suffix(FINE).write_bytes(record.fine)
    plain = {
        name: getattr(record, name) for name in ("key", "backbone", "data", "settings", "facts")
    }
    path.write_text(json.dumps(plain))
    return path


def load_map(path: Path) -> ImportanceRecord:
    """The record that `save_map` wrote."""
    fine = path.with_suffix(FINE)
    return ImportanceRecord(
        **json.loads(path.read_text()),
        units=path.with_suffix(UNITS).read_bytes(),
        fine=fine.read_bytes() if fine.exists() else None,
    )
