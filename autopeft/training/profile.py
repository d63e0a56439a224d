"""What the training of a pack took."""

import resource
import sys
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Profile:
    """What a pack's training took so far.

    Attributes:
        optimizer_steps: Steps taken.
        samples: Examples per lane.
        tokens: Tokens per lane, padding included.
        train_seconds: In training steps, the whole pack.
        evaluation_seconds: In evaluation, the whole pack.
        loading_seconds: Building the pack and its optimizer, restoring lane states.
    """

    optimizer_steps: int = 0
    samples: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    loading_seconds: float = 0.0

    def to_dict(self, *, lanes: int, share: float) -> dict[str, Any]:
        """As stored with a trial: the pack's figures, and the trial's share of the seconds."""
        return {
            "optimizer_steps": self.optimizer_steps,
            "samples": self.samples,
            "tokens": self.tokens,
            "pack_lanes": lanes,
            "pack_train_seconds": round(self.train_seconds, 4),
            "pack_evaluation_seconds": round(self.evaluation_seconds, 4),
            "pack_loading_seconds": round(self.loading_seconds, 4),
            "train_seconds": round(self.train_seconds * share, 4),
            "evaluation_seconds": round(self.evaluation_seconds * share, 4),
            "loading_seconds": round(self.loading_seconds * share, 4),
            "peak_memory_bytes": peak_memory_bytes(),
        }


def peak_memory_bytes() -> int:
    """Peak memory of this process: the GPU's where one is in use, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
