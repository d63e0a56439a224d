"""What a study fixes for its search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopeft.configuration import Configuration
from autopeft.searchers.base import Proposal
from autopeft.searchers.front import Bound


@dataclass(frozen=True)
class TunerSettings:
    """What a study fixes for its search.

    Attributes:
        trials: Budget of trials, baselines not counted.
        proposals: Proposals of an ask: the trials of a cohort.
        pack_size: Most lanes of a pack.
        memory_limit: Lanes of the largest pack that has fitted into the device's memory after a
            larger one did not, or None where none was too large yet.
        device: The device's kind, for which the limit holds.
        rung_steps: Optimizer step at the end of each rung, ascending by share.
        baselines: Run first, by name.
        enqueued: Run next, within the budget.
        warm_start: Run after those, within the budget: what earlier studies found good.
        head_params: Parameters of the task head.
        bounds: Caps and floors of the front.
        wall_clock_s: Seconds over all sittings, or None.
        train_s: Device seconds (`StudyRecord.device_seconds`), or None.
        states: Folder of the lane states.
        accuracy_like: Whether quality is a share of examples answered rightly (binomial noise).
        stops: Whether rungs end trials, or only measure them.
        probes: Whether trials are measured by themselves before they are trained.
        min_gain: Hypervolume that a full trial has to promise, or None.
        optimizer_steps: Of all trials together, or None.
        micro_batch_size: Examples per forward pass and lane; a lone trial that does not fit into
            memory so is tried with fewer.
    """

    trials: int
    proposals: int
    pack_size: int
    memory_limit: int | None
    device: str
    rung_steps: Mapping[float, int]
    baselines: Mapping[str, Configuration]
    enqueued: Sequence[Configuration]
    head_params: int
    bounds: Sequence[Bound]
    wall_clock_s: float | None
    train_s: float | None
    states: Path
    accuracy_like: bool
    stops: bool = True
    warm_start: Sequence[Proposal] = ()
    probes: bool = False
    min_gain: float | None = None
    optimizer_steps: int | None = None
    micro_batch_size: int = 1

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the full budget."""
        return max(self.rung_steps.values())
