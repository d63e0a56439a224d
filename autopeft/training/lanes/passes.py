"""Passes: lanes that run through the backbone together, and are updated together."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.loading import Backbone
from autopeft.counting import pass_kind
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW, schedule
from autopeft.training.lanes.pack import Lane, Pack, in_stream_order
from autopeft.training.lanes.passed import is_passed
from autopeft.training.lanes.rules import Answer, LaneRules, freezes_scalars, segment_layers
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.steps import Steps, recorder_for
from autopeft.training.settings import LoopSettings
from autopeft.training.step_shape import lanes_of_passes
from autopeft.training.tasks import Task


def in_passes(lanes: Sequence[Lane], anatomy: Anatomy, size: int) -> list[list[Lane]]:
    """The lanes of each pass, at most `size`, in stream order.

    Those with prompts run with those that have as many tokens of them, since rows of a pass have
    one length, and those that compare two passes apart from those that do not. Those without a
    lane axis have passes of their own, the last ones.
    """
    order = in_stream_order(lanes, anatomy)
    stacked = [lane for lane in order if not is_passed(lane.configuration)]
    kinds = [pass_kind(lane.configuration, anatomy) for lane in stacked]
    together = [[stacked[position] for position in own] for own in lanes_of_passes(kinds, size)]
    return [*together, *([lane] for lane in order if is_passed(lane.configuration))]


class LanePass:
    """Lanes that run through the backbone together, with what updates them.

    Args:
        backbone: Frozen.
        task: Gives the head and the loss.
        lanes: At least one.
        settings: Shared by all trials.
        seeds: Of the replicate.
        saved: See `Pack`.

    Attributes:
        pack: The lanes.
        optimizer: Of the pack's tensors.
        rules: Sparsity rules of the lanes.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        lanes: Sequence[Lane],
        settings: LoopSettings,
        seeds: Seeds,
        saved: Mapping[int, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> None:
        self.pack = Pack(
            backbone,
            task.recipe,
            lanes,
            seeds=seeds,
            checkpointing=settings.gradient_checkpointing,
            backbone_dropout=settings.backbone_dropout,
            saved=saved,
        )
        values = [lane.configuration.training_value for lane in self.pack.lanes]
        self.optimizer = LaneAdamW(
            self.pack.stacked(),
            len(lanes),
            learning_rates=[value("learning_rate") for value in values],
            weight_decays=[value("weight_decay") for value in values],
            max_grad_norm=settings.max_grad_norm,
            layers=segment_layers(self.pack.lanes, self.pack.n_layers),
            by_element=freezes_scalars(self.pack.lanes),
        )
        total = settings.total_steps
        self._factors = schedule(
            settings.lr_scheduler,
            total=total,
            warmup_steps=[warmup_steps(value("warmup_ratio"), total) for value in values],
            device=self.pack.device,
        )
        # What peft's own code does between kernels is not known well enough to be replayed.
        recorder = None if self.pack.passes_on else recorder_for(self.pack.device)
        self.rules = LaneRules(
            self.pack,
            self.optimizer,
            total_steps=total,
            seeds=seeds,
            spares=recorder is None,
        )
        self._steps = Steps(
            self.pack,
            self.optimizer,
            task.loss_sums,
            divergence=task.divergence_sums,
            precision=settings.precision,
            recorder=recorder,
        )

    @property
    def replayed(self) -> int:
        """Forward and backward passes that were replayed, not launched one kernel at a time."""
        return self._steps.replayed

    def begin(self, step: int, answer: Answer) -> None:
        """Clear all gradients, and let rules say what trains in the step after `step` steps."""
        self.optimizer.zero_grad()
        self.rules.ask(step, answer)
        self.rules.schedule(step)

    def accumulate(
        self, batch: Batch, known: Mapping[int, Tensor], draws: StepUniform, *, weight: int
    ) -> Tensor:
        """See `Steps.accumulate`."""
        with self.pack.running():
            return self._steps.accumulate(batch, known, draws, weight=weight)

    def update(self, step: int) -> None:
        """The update after `step` steps."""
        self.rules.score(step)
        self._steps.update(self._factors[step])
        self.rules.apply(step)


def warmup_steps(ratio: float, total: int) -> int:
    """Warm-up steps of a share of the full budget, rounded up as transformers does."""
    return int(np.ceil(ratio * total))
