"""What probes of a space's ends found: the frames of measured costs, fixed with the study."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autopeft.configuration import Configuration
from autopeft.errors import Fault, InputError, TrialError
from autopeft.study.definition import StudyDefinition
from autopeft.study.metrics import METRICS
from autopeft.study.progress import Listener
from autopeft.study.records import StudyRecord

if TYPE_CHECKING:
    import torch

    from autopeft.execution.probe import SoloProbe


@dataclass(frozen=True)
class SpaceProbes:
    """Measured costs at the ends of a space; see `problem.probed_ends`.

    Attributes:
        ends: What the probe of each end found, by the end's name; see `execution.probe`.
        ranges: The least and the largest value of every measured metric.
        machine: What the seconds are of.
    """

    ends: Mapping[str, Mapping[str, Any]]
    ranges: Mapping[str, tuple[float, float]]
    machine: str

    @classmethod
    def of(
        cls, ends: Mapping[str, Mapping[str, Any]], definition: StudyDefinition, machine: str
    ) -> "SpaceProbes":
        """What probes found.

        Raises:
            InputError: No end could be probed.
        """
        if not ends:
            shown, where = ", ".join(definition.measured), f"study {definition.study.name}"
            hint = "plan tells what fits; smaller batches or lengths take less"
            raise InputError(Fault(where, "objectives", shown, "costs that can be measured", hint))
        values = {n: [float(end[n]) for end in ends.values()] for n in definition.measured}
        ranges = {name: (min(found), max(found)) for name, found in values.items()}
        return cls(ends, ranges, machine)

    @classmethod
    def stored(cls, record: StudyRecord) -> "SpaceProbes | None":
        """What a study was created with; None where it has no measured cost."""
        plain = record.facts.get("probes")
        if not plain:
            return None
        ranges = {name: (low, high) for name, (low, high) in plain["ranges"].items()}
        return cls(plain["ends"], ranges, plain["machine"])

    def elsewhere(self, device: "torch.device") -> str:
        """A line where the study goes on on another machine than it was probed on; else ""."""
        from autopeft.execution.probe import machine_name

        now = machine_name(device)
        if now == self.machine:
            return ""
        return (
            f"the study's costs were first measured on {self.machine}; it goes on on {now}, whose "
            "seconds may not compare"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as in the study's facts."""
        return {
            "ends": {name: dict(found) for name, found in self.ends.items()},
            "ranges": {name: list(both) for name, both in self.ranges.items()},
            "machine": self.machine,
        }

    def lines(self, definition: StudyDefinition) -> Iterator[str]:
        """What the user should know: a line for every metric, and one for a cap that is odd."""
        for name, (low, high) in self.ranges.items():
            yield f"{name} of one trial by itself: {low:.4g} to {high:.4g} ({self.machine})"
        for entry in definition.bounded:
            cap, low = entry.cap, self.ranges.get(entry.metric, (0.0, 0.0))[0]
            if cap is not None and METRICS[entry.metric].kind == "measured" and cap < low:
                yield (
                    f"the cap of {cap:.4g} on {entry.metric} is below all that was probed: few "
                    "trials will keep it, if any; those that break it are not trained"
                )


def probe_ends(
    probe: "SoloProbe",
    ends: Mapping[str, Configuration],
    definition: StudyDefinition,
    listener: Listener,
    *,
    go_on: Callable[[], None],
) -> SpaceProbes:
    """Measure the ends of a space.

    Args:
        probe: The study's.
        ends: What to measure, by name.
        definition: The study.
        listener: Told what was found.
        go_on: Called before every end; raises where somebody asked to stop.

    Raises:
        InputError: Not even one end could be measured.
    """
    from autopeft.execution.probe import machine_name

    shown = ", ".join(definition.measured)
    listener.on_event(f"measuring {shown} at the ends of the space, once")
    found: dict[str, Mapping[str, Any]] = {}
    for name, configuration in ends.items():
        go_on()
        try:
            found[name] = probe.measure(configuration)
        except TrialError as error:
            listener.on_event(f"the space's {name} configuration cannot be measured: {error}")
    probes = SpaceProbes.of(found, definition, machine_name(probe.device))
    for line in probes.lines(definition):
        listener.on_event(line)
    return probes
