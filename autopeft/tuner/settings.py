"""What a study fixes for its search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopeft.configuration import Configuration
from autopeft.searchers.front import Bound


@dataclass(frozen=True)
class TunerSettings:
    """What a study fixes for its search.

    Attributes:
        trials: Budget of trials, baselines not counted.
        pack_size: Lanes of a pack, and proposals of an ask.
        rung_steps: Optimizer step at the end of each rung, ascending by share.
        baselines: Run first, by name.
        enqueued: Run next, within the budget.
        head_params: Parameters of the task head.
        bounds: Caps and floors of the front.
        wall_clock_s: Seconds over all sittings, or None.
        train_s: Device seconds of training, or None.
        stop_after_s: Seconds of this sitting, or None.
        states: Folder of the lane states.
        accuracy_like: Whether quality is a share of correct answers (binomial noise).
    """

    trials: int
    pack_size: int
    rung_steps: Mapping[float, int]
    baselines: Mapping[str, Configuration]
    enqueued: Sequence[Configuration]
    head_params: int
    bounds: Sequence[Bound]
    wall_clock_s: float | None
    train_s: float | None
    stop_after_s: float | None
    states: Path
    accuracy_like: bool

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the full budget."""
        return max(self.rung_steps.values())
