"""How a rule acts on one lane while it trains: schedule, score, apply.

Around optimizer step t (from 0), the machinery (`autopeft.training.lanes.rules`) calls

    question(t), score_losses(t)   before it: losses of forward passes of the rule's own
    schedule(t)                    before it: the layers that train
    (forward, backward)
    score_gradients(t)             gradients are there, nothing has moved yet
    (update)
    apply(t)                       weights have moved

A rule's file overrides what it needs; the base does nothing. Whatever it draws is a pure function
of (study seed, replicate, purpose, step), so that a lane's way does not depend on its pack.

No step waits for the device. A rule that draws on the host, whatever the losses, says its layers
as numbers (`lisa.py`); one that learns from losses keeps what it learns in tensors (`ist.py`).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autopeft.configuration import Configuration

Draws = Callable[[str, int], np.random.Generator]
"""Gives the generator of one purpose at one step."""


@dataclass(frozen=True)
class Subject:
    """The lane that a rule acts on.

    The tensors are the lane's own parts (unpadded, at `method.layer.site.tensor`, the head's left
    out) of what the optimizer updates; they are written in place.

    Attributes:
        configuration: What it trains.
        n_layers: Layers of the backbone.
        total_steps: Optimizer steps T of the full budget.
        draws: Source of all randomness.
        weights: Trained tensors.
        gradients: Their gradients, of the same shapes; what is left in them between steps means
            nothing.
        frozen: bool, of the same shapes: True where a scalar must not move. Empty unless the rule
            is `by_element`.
    """

    configuration: Configuration
    n_layers: int
    total_steps: int
    draws: Draws
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    frozen: Mapping[str, Tensor]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that the configuration occupies."""
        return self.configuration.layers

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU where it has none."""
        return next((tensor.device for tensor in self.weights.values()), torch.device("cpu"))


@dataclass(frozen=True)
class Question:
    """Forward passes on training examples, in eval mode, that a rule asks for.

    Attributes:
        examples: How many; they come from a seeded order of their own.
        turn: Which batch of that order, from 0.
        gains: [candidates, n_layers] factors on what the lane's operators add, one pass each.
    """

    examples: int
    turn: int
    gains: Tensor


class Acting:
    """What a rule does to one lane; the base lets everything train.

    Attributes:
        period: Steps between its questions; 0 where it never asks.
    """

    period: int = 0

    def question(self, step: int) -> Question | None:
        """The passes that it wants before this step."""
        return None

    def score_losses(self, step: int, losses: Tensor) -> None:
        """Learn from the mean loss of every candidate, [candidates], on the lane's device."""

    def schedule(self, step: int) -> Collection[int] | Tensor | None:
        """The layers that train at this step; None for all.

        A rule that chooses by what it has learnt on the device gives a mask, bool [n_layers],
        so that nobody waits to hear which they are.
        """
        return None

    def score_gradients(self, step: int) -> None:
        """Learn from the step's gradients, and decide which scalars move."""

    def apply(self, step: int) -> None:
        """Change what the update has made."""

    def state(self) -> dict[str, Tensor]:
        """What it has learnt, by name, for `restore` in another pack."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave."""
