"""Random numbers as pure functions of (study seed, replicate, purpose, name, step).

So a lane's draws do not depend on its pack, and a resumed run draws what an uninterrupted one
would have drawn. Initial tensors are drawn on the CPU and moved; what a step draws is drawn on a
GPU where it is needed there, so that no step waits for a copy.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seeds:
    """The source of all randomness of one replicate of one study."""

    study_seed: int
    replicate: int = 0

    def seed(self, purpose: str, name: str = "", step: int = 0) -> int:
        """63 bits that depend on every argument."""
        text = f"{self.study_seed}/{self.replicate}/{purpose}/{name}/{step}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def generator(
        self, purpose: str, name: str = "", step: int = 0, *, device: str = "cpu"
    ) -> torch.Generator:
        """A fresh generator with that seed."""
        return torch.Generator(device).manual_seed(self.seed(purpose, name, step))


@dataclass(frozen=True)
class StepUniform:
    """The uniform draws of one optimizer step, shared by all lanes (`lane_operator.Uniform`).

    A micro-batch sees the rows of the whole batch's draw that are its own, so that the result does
    not depend on how a batch is cut.

    Attributes:
        seeds: Where they come from.
        step: The optimizer step.
        first_row: The micro-batch's first row within the batch.
        batch_rows: Rows of the whole batch.
        device: Where they go.
    """

    seeds: Seeds
    step: int
    first_row: int
    batch_rows: int
    device: torch.device

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """float32 uniform in [0, 1) of `shape` = [rows, ...], or of any shape for all rows."""
        device = self.device.type if self.device.type == "cuda" else "cpu"
        generator = self.seeds.generator("dropout", name, self.step, device=device)
        if not per_row:
            return torch.rand(*shape, generator=generator, device=device).to(self.device)
        draw = torch.rand(self.batch_rows, *shape[1:], generator=generator, device=device)
        return draw[self.first_row : self.first_row + shape[0]].to(self.device)

    def seed(self, name: str) -> int:
        """See `Uniform`."""
        return self.seeds.seed("seed", name, self.step)
