"""Packs with autopeft, whole or with one factor taken away."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch

from autopeft.study.metrics import CAUSAL_LM, CLASSIFICATION
from autopeft.training import batches
from autopeft.training.activations import CacheBudget
from autopeft.training.batches import steps_per_epoch
from autopeft.training.data.examples import TaskData
from autopeft.training.lanes import pack as packing
from autopeft.training.lanes import passes
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.seeds import StepUniform
from autopeft.training.lanes.wiring import Placed
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.settings import LoopSettings
from benchmarks.speed.measuring import Measured, Span, Stopwatch, Turns
from benchmarks.speed.shapes import Subject

CACHE_BYTES = 2 << 30
OPERATORS = 1 << 14
"""That are compiled at most: dynamo makes each operator a function of its own."""


@dataclass(frozen=True)
class Ours:
    """How autopeft trains.

    Attributes:
        epochs: Passes over the training rows.
        batch_size: Rows per step and lane.
        micro_batch_size: Rows per forward pass and lane.
        precision: `fp32` or `bf16`.
        bucketing: Whether rows of similar length are batched.
        trunk: Whether lanes share the layers below their branch points.
        graphs: Whether a GPU replays captured steps.
        compiled: Whether operators run through `torch.compile`: by inductor on a GPU, elsewhere
            traced and differentiated only, so that the path is walked. The frozen layers stay as
            they are: dynamo breaks at every hook and gate.
        cache_bytes: Memory for the trunk's activations; 0 for none.
        max_steps: Ends the training there; 0 for all epochs.
        uncounted_steps: Steps at the start that are not timed.
        evaluate: Whether to evaluate once at the end.
        by_step: Whether others may take a turn between steps, for which the device is waited for.
    """

    epochs: int = 3
    batch_size: int = 32
    micro_batch_size: int = 32
    precision: str = "fp32"
    bucketing: bool = True
    trunk: bool = True
    graphs: bool = True
    compiled: bool = False
    cache_bytes: int = 0
    max_steps: int = 0
    uncounted_steps: int = 0
    evaluate: bool = True
    by_step: bool = False

    def total_steps(self, data: TaskData) -> int:
        """Optimizer steps of a trial."""
        return self.max_steps or self.epochs * steps_per_epoch(len(data.train), self.batch_size)


def trainer_of(subject: Subject, data: TaskData, ours: Ours) -> Trainer:
    """The persistent part, with an empty cache."""
    causal = subject.backbone.lm_head is not None
    settings = LoopSettings(
        task=CAUSAL_LM if causal else CLASSIFICATION,
        metrics=("loss",) if causal else ("accuracy", "loss"),
        total_steps=ours.total_steps(data),
        batch_size=ours.batch_size,
        micro_batch_size=ours.micro_batch_size,
        precision=ours.precision,
        cache=CacheBudget(memory_bytes=ours.cache_bytes),
    )
    return Trainer(subject.backbone, data, settings, study_seed=0)


def lane_turns(subject: Subject, trainer: Trainer, lanes: Sequence[Lane], ours: Ours) -> Turns:
    """Make a pack, train it and evaluate it, in turns."""
    nothing: Span = (0.0, 0.0)
    train, evaluation = nothing, nothing
    watch = Stopwatch(subject.device)
    with _as_asked(ours, subject.device):
        run = trainer.start(lanes)
        setup = watch.lap()
        run.train(ours.uncounted_steps)
    uncounted, total = run.profile.samples, trainer.settings.total_steps
    while run.step < total:
        yield
        watch.lap()
        with _as_asked(ours, subject.device):
            run.train(run.step + 1 if ours.by_step else total)
        wall, cpu = watch.lap()
        train = train[0] + wall, train[1] + cpu
    found = {}
    if ours.evaluate:
        yield
        watch.lap()
        with _as_asked(ours, subject.device):
            found = run.evaluate()
        evaluation = watch.lap()
    accuracies = {str(number): each.values.get("accuracy") for number, each in found.items()}
    return Measured(
        setup=nothing if ours.uncounted_steps else setup,
        train=train,
        evaluation=evaluation,
        samples=(run.profile.samples - uncounted) * len(lanes),
        details={
            "accuracy": accuracies,
            "tokens": run.profile.tokens,
            "replayed": run.replayed,
            "curves": _curves(run),
        },
    )


def _curves(run: PackRun) -> Mapping[str, list[tuple[int, float | None]]]:
    return {
        str(number): [(point.step, point.value) for point in points]
        for number, points in run.drain_curve().items()
    }


@contextmanager
def _as_asked(ours: Ours, device: torch.device) -> Iterator[None]:
    """For the time of one turn: others' are not to be touched."""
    with _without(ours), _compiled(device) if ours.compiled else nullcontext():
        yield


@contextmanager
def _without(ours: Ours) -> Iterator[None]:
    """Take factors away that have no setting: no user should want to.

    Without bucketing, a window holds one batch, so that sorting within it groups nothing. Without
    a trunk, all lanes branch off at the first layer. Without graphs, all kernels are launched.
    """
    with ExitStack() as stack:
        if not ours.bucketing:
            stack.enter_context(mock.patch.object(batches, "WINDOW", 1))
        if not ours.trunk:
            stack.enter_context(mock.patch.object(packing, "first_layer", return_value=0))
        if not ours.graphs:
            stack.enter_context(mock.patch.object(passes, "recorder_for", return_value=None))
        yield


@contextmanager
def _compiled(device: torch.device) -> Iterator[None]:
    """Operators compiled, each for its own shapes; random draws seed generators, and are not."""
    from torch._dynamo import config  # seconds, and needed here alone

    backend = "inductor" if device.type == "cuda" else "aot_eager"
    delta = torch.compile(Placed.delta, backend=backend, dynamic=False)
    draw = torch.compiler.disable(StepUniform.__call__)
    limits = {"recompile_limit": OPERATORS, "accumulated_recompile_limit": OPERATORS}
    with (
        config.patch(**limits),
        mock.patch.object(Placed, "delta", delta),
        mock.patch.object(StepUniform, "__call__", draw),
    ):
        yield
