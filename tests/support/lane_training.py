"""Training a pack step by step: the parts of the loop, put together for the equality contract."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from autopeft.backbone.loading import Backbone
from autopeft.methods.lane_operator import SILENT, Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW, schedule
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.rules import Answer, LaneRules, freezes_scalars, segment_layers
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState, put_state, take_state
from autopeft.training.lanes.steps import Recorder, Steps
from autopeft.training.tasks import CausalTask, SequenceTask, Task

STEPS = 20
SCORING = 1000
"""The first step whose batch is none that trains: rules are scored on it."""
CLASSES = 3
Known = Mapping[int, torch.Tensor]
Make = Callable[[int, Pack], tuple[Batch, Known]]
"""The batch of a step, and the trunk inputs that are known of it."""


def without_cache(batches: Callable[[int], Batch]) -> Make:
    """Batches by step, of which nothing is known."""
    return lambda step, pack: (batches(step), {})


class Training:
    """A pack with its optimizer."""

    def __init__(
        self,
        backbone: Backbone,
        lanes: Sequence[Lane],
        dtype: torch.dtype = torch.float64,
        *,
        checkpointing: bool = False,
        backbone_dropout: bool = False,
        recorder: Recorder | None = None,
        saved: Mapping[int, Mapping[str, torch.Tensor]] = MappingProxyType({}),
        seed: int = 7,
    ) -> None:
        self.seeds = Seeds(seed)
        self._backbone = backbone
        self.pack = Pack(
            backbone,
            backbone.recipe(CLASSES),
            lanes,
            seeds=self.seeds,
            dtype=dtype,
            checkpointing=checkpointing,
            backbone_dropout=backbone_dropout,
            saved=saved,
        )
        values = [lane.configuration.training_value for lane in self.pack.lanes]
        self.optimizer = LaneAdamW(
            self.pack.stacked(),
            len(lanes),
            learning_rates=[value("learning_rate") for value in values],
            weight_decays=[value("weight_decay") for value in values],
            max_grad_norm=1.0,
            layers=segment_layers(self.pack.lanes, self.pack.n_layers),
            by_element=freezes_scalars(self.pack.lanes),
        )
        self.rules = LaneRules(
            self.pack,
            self.optimizer,
            total_steps=STEPS,
            seeds=self.seeds,
            spares=recorder is None,
        )
        self.factors = schedule(
            "linear",
            total=STEPS,
            warmup_steps=[int(np.ceil(value("warmup_ratio") * STEPS)) for value in values],
            device=self.pack.device,
        )
        self.steps = Steps(
            self.pack,
            self.optimizer,
            task_of(backbone).loss_sums,
            divergence=task_of(backbone).divergence_sums,
            recorder=recorder,
        )

    def run(self, make: Make, start: int = 0, stop: int = STEPS) -> dict[int, LaneState]:
        """Steps start .. stop - 1, then every lane's state."""
        with self.pack.running():
            for step in range(start, stop):
                self.step(make, step)
        return take_state(self.pack, self.optimizer, stop, self.rules)

    def step(self, make: Make, step: int) -> None:
        """One step, while the pack is running."""
        batch, known = make(step, self.pack)
        weight = len(batch) if batch.targets is None else batch.targets.count
        uniform = StepUniform(self.seeds, step, 0, len(batch), self.pack.device)
        self.optimizer.zero_grad()
        self.rules.ask(step, self.answer(make))
        self.rules.schedule(step)
        self.steps.accumulate(batch, known, uniform, weight=weight)
        self.rules.score(step)
        self.steps.update(self.factors[step])
        self.rules.apply(step)

    def right(self, make: Make) -> dict[int, int]:
        """How many examples of a batch that does not train every lane predicts, by its number."""
        with self.pack.running(), torch.no_grad():
            batch, known = make(SCORING, self.pack)
            logits = self.pack(batch, SILENT, known)
        right = (logits.argmax(-1) == batch.labels).sum(1).tolist()
        return {lane.number: int(each) for lane, each in zip(self.pack.lanes, right, strict=True)}

    def put(self, states: dict[int, LaneState]) -> None:
        """Continue from states."""
        put_state(self.pack, self.optimizer, states, self.rules)

    def answer(self, make: Make) -> Answer:
        """Losses of the batch of a step that does not train."""

        def losses(size: int, turn: int, gains: torch.Tensor) -> torch.Tensor:
            batch, known = make(SCORING + turn, self.pack)
            loss = task_of(self._backbone).loss_sums
            weight = len(batch) if batch.targets is None else batch.targets.count
            uniform = StepUniform(self.seeds, 0, 0, len(batch), self.pack.device)
            with torch.no_grad():
                each = [
                    loss(self.pack(batch, Call(False, uniform, gain), known), batch)
                    for gain in gains
                ]
            return torch.stack(each) / weight

        return losses


def task_of(backbone: Backbone) -> Task:
    """Classification, or answers where the backbone has a language-model head."""
    recipe = backbone.recipe(CLASSES)
    if backbone.lm_head is None:
        return SequenceTask(recipe, CLASSES)
    return CausalTask(recipe, backbone.lm_head)


def furthest(one: LaneState, other: LaneState) -> float:
    """The largest difference of any tensor, weights and both moments; empty ones have none."""
    shapes = [{name: each.shape for name, each in state.tensors.items()} for state in (one, other)]
    assert shapes[0] == shapes[1]
    return max(
        float((tensor - other.tensors[name]).abs().max())
        for name, tensor in one.tensors.items()
        if tensor.numel()
    )
