"""What the training of a trial took: its packs' figures and its own share of the seconds.

Stored with the trial as plain JSON. Steps, samples and tokens are per lane. Seconds come twice:
`pack_..._seconds` are those of all lanes together, `..._seconds` the trial's share of them, by
closed-form FLOPs, for accounting only. All add up over the packs of a trial (one per rung and
sitting), but lanes and peak memory, which are the last pack's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHARED = ("train_seconds", "evaluation_seconds", "loading_seconds")
"""Seconds of a pack that its lanes share."""

SUMMED = (
    "packs",
    "optimizer_steps",
    "samples",
    "tokens",
    *SHARED,
    "waiting_seconds",
    *(f"pack_{name}" for name in SHARED),
)
"""What adds up over the packs of a trial."""


@dataclass(frozen=True)
class PackFigures:
    """What one pack took so far.

    Attributes:
        lanes: Trials in it.
        optimizer_steps: Steps taken.
        samples: Examples per lane.
        tokens: Tokens per lane, padding included.
        train_seconds: In optimizer steps.
        evaluation_seconds: In measuring.
        loading_seconds: Until it could start: building its lanes, restoring their states.
        peak_memory_bytes: Of the device, or of the process where it trains on the CPU.
    """

    lanes: int
    optimizer_steps: int
    samples: int
    tokens: int
    train_seconds: float
    evaluation_seconds: float
    loading_seconds: float
    peak_memory_bytes: int


def trial_profile(
    figures: PackFigures, *, share: float, waited: float, before: Mapping[str, Any]
) -> dict[str, Any]:
    """One trial's profile.

    Args:
        figures: Of its present pack.
        share: The trial's share of the pack's seconds, in [0, 1].
        waited: Seconds between its proposal, or the rung before, and the start of this pack.
        before: Its profile up to this pack; {} for the first.
    """
    seconds = {name: float(getattr(figures, name)) for name in SHARED}
    profile: dict[str, Any] = {
        "packs": 1,
        "optimizer_steps": figures.optimizer_steps,
        "samples": figures.samples,
        "tokens": figures.tokens,
        **{name: value * share for name, value in seconds.items()},
        "waiting_seconds": waited,
        **{f"pack_{name}": value for name, value in seconds.items()},
    }
    summed = {name: profile[name] + before.get(name, 0) for name in SUMMED}
    rounded = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in summed.items()
    }
    return {
        **rounded,
        "pack_lanes": figures.lanes,
        "peak_memory_bytes": figures.peak_memory_bytes,
    }
