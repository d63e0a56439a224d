"""What `plan` knows of a machine: the timings of the stored study, else those of a short run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autopeft.api.definitions import stored_plain
from autopeft.api.loading import open_existing
from autopeft.study.definition import StudyDefinition, difference
from autopeft.study.progress import Listener
from autopeft.study.records import StudyRecord
from autopeft.study.sitting import Sitting


@dataclass(frozen=True)
class Timed:
    """What a run on the machine found.

    Attributes:
        by: `probe` where it was measured now, `study` where the stored study had found it when it
            was created; None where nothing was timed.
        calibration: Pack size, precision, timings; None where nothing was timed.
        probes: Measured costs at the ends of the space; None where the study has none.
    """

    by: Literal["probe", "study"] | None = None
    calibration: Mapping[str, Any] | None = None
    probes: Mapping[str, Any] | None = None

    def range_of(self, metric: str) -> dict[str, float] | None:
        """The least and the largest value of a measured cost; None where nothing was measured."""
        if not self.probes or metric not in self.probes["ranges"]:
            return None
        low, high = self.probes["ranges"][metric]
        return {"min": low, "max": high}


def stored_timing(
    definition: StudyDefinition, data_fingerprint: str, storage: str | None
) -> Timed | None:
    """What a stored study found when it was created, where that is what a probe would find now.

    Args:
        definition: The study that is planned.
        data_fingerprint: Of its data, now.
        storage: URL of the database; none is made.

    Returns:
        None unless the study of that name is this very study on the same data and on the same
        device of the same machine, and its packs were timed.
    """
    store = open_existing(storage)
    if store is None:
        return None
    found = next((r for r in store.studies() if r.name == definition.study.name), None)
    if found is None or not (found.facts.get("calibration") or {}).get("step_seconds"):
        return None
    if difference(stored_plain(found), definition.to_plain()) or not _is_here(found, definition):
        return None
    if found.fingerprints["data"] != data_fingerprint:
        return None
    return Timed("study", found.facts["calibration"], found.facts.get("probes"))


def _is_here(record: StudyRecord, definition: StudyDefinition) -> bool:
    """Whether a study was created on the device of this machine that the definition asks for."""
    from autopeft.execution.probe import machine_name
    from autopeft.training.setup import device_of

    device = device_of(definition.execution.devices)
    facts = record.facts
    return (facts.get("device"), facts.get("machine")) == (device.type, machine_name(device))


def probed_timing(definition: StudyDefinition, folder: Path, listener: Listener) -> Timed:
    """What a short run finds now."""
    from autopeft.api.preparation import Preparation

    prepared, sitting = Preparation(definition, folder, listener), Sitting()
    calibration = prepared.calibrate(listener, sitting, timed=True)
    probes = prepared.probe_space(calibration, listener, sitting)
    plain = None if probes is None else probes.to_dict()
    return Timed("probe", calibration.to_dict(), plain)
