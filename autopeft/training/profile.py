"""What the training of one pack took so far, as the loop counts it."""

from dataclasses import dataclass


@dataclass
class Profile:
    """What a pack's training took so far.

    Attributes:
        optimizer_steps: Steps taken.
        samples: Examples per lane.
        tokens: Tokens per lane, padding included.
        train_seconds: In training steps, the whole pack; with what rules do around them.
        scoring_seconds: Of these, in forward passes that sparsity rules asked for.
        evaluation_seconds: In evaluation, the whole pack.
    """

    optimizer_steps: int = 0
    samples: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    scoring_seconds: float = 0.0
    evaluation_seconds: float = 0.0
