"""What the trials of one study share of how they are trained."""

from dataclasses import dataclass, field

from autopeft.training.activations import CacheBudget


@dataclass(frozen=True)
class LoopSettings:
    """What one study's trials share.

    Attributes:
        task: `sequence-classification`, `regression` or `causal-lm`.
        metrics: Validation metrics to compute, `loss` included where wanted.
        density: Whether `activation_density` is measured beside them.
        total_steps: Optimizer steps of the full budget.
        batch_size: Examples per optimizer step and lane.
        micro_batch_size: Examples per forward pass and lane.
        lr_scheduler: `linear`, `cosine` or `constant`.
        max_grad_norm: Per lane, or None.
        precision: `fp32` or `bf16` (autocast; trained weights stay float32).
        gradient_checkpointing: Recompute the lanes' layers in the backward pass.
        backbone_dropout: Run the backbone's own dropout; nothing is cached then.
        cache: How much of the trunk's activations may be kept.
        lanes_per_pass: Lanes that run through the backbone together, or 0 for what suits device
            and shapes.
    """

    task: str
    metrics: tuple[str, ...]
    total_steps: int
    batch_size: int
    micro_batch_size: int
    lr_scheduler: str = "linear"
    max_grad_norm: float | None = 1.0
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    backbone_dropout: bool = False
    cache: CacheBudget = field(default_factory=CacheBudget)
    lanes_per_pass: int = 0
    density: bool = False
