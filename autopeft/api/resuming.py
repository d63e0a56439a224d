"""Whether a stored study may go on: on the same data, backbone, space and device."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from autopeft.api.probing import SpaceProbes
from autopeft.api.versions import package_versions
from autopeft.errors import Fault, StudyMismatchError
from autopeft.study.progress import Listener
from autopeft.study.records import StudyRecord

if TYPE_CHECKING:
    import torch


def check_unchanged(
    record: StudyRecord,
    *,
    fingerprints: Mapping[str, str],
    space_hash: str,
    device: "torch.device",
    listener: Listener,
) -> None:
    """Compare what a study was created with and what is here now.

    Args:
        record: The study.
        fingerprints: Of data and backbone, now.
        space_hash: Of the bound space, now.
        device: Where it is to go on.
        listener: Told of packages that have changed.

    Raises:
        StudyMismatchError: With the difference.
    """
    stored = SpaceProbes.stored(record)
    faults = [*_changed(record, fingerprints, space_hash)]
    if stored is not None and record.facts["device"] != device.type:
        faults.append(
            Fault(
                f"study {record.name}",
                "execution.devices",
                device.type,
                str(record.facts["device"]),
                f"{' and '.join(stored.ranges)} of two devices do not compare",
            )
        )
    if faults:
        raise StudyMismatchError(faults)
    if stored is not None and (note := stored.elsewhere(device)):
        listener.on_event(note)
    installed = package_versions()
    for package, before in record.versions.items():
        if (now_is := installed.get(package)) != before:
            text = f"{package} is {now_is} now and was {before} when the study was created"
            listener.on_event(text)


def _changed(
    record: StudyRecord, fingerprints: Mapping[str, str], space_hash: str
) -> Iterator[Fault]:
    for what, given in fingerprints.items():
        if record.fingerprints[what] != given:
            yield Fault(
                f"study {record.name}",
                f"{what} fingerprint",
                given[:16],
                record.fingerprints[what][:16],
                f"the {what} has changed since the study was created: start another study",
            )
    if record.space_hash != space_hash:
        yield Fault(
            f"study {record.name}",
            "space",
            space_hash[:16],
            record.space_hash[:16],
            "the space file has changed since the study was created",
        )
