"""Forward, backward and update of one pack; replayed as CUDA graphs where there is a GPU.

A step of small lanes is hundreds of kernels that each run shorter than the host takes to launch
them. A graph per shape of batch is launched as one. What changes between steps (token ids, known
activations, random draws, learning-rate factors) is copied into fixed buffers before a replay.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from autopeft.methods.lane_operator import Call, Uniform
from autopeft.training.batches import Batch
from autopeft.training.lanes.comparing import Comparison, Divergence
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Pack
from autopeft.training.lanes.seeds import StepUniform

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""Shapes that are captured; later ones run eagerly, with a warning. `batches` sees to it that few
occur; a graph keeps some megabytes of nodes, and all share the memory that they run in."""

DrawKey: TypeAlias = tuple[str, tuple[int, ...]]
"""Name and shape of a random draw: a name may be drawn in several shapes in one pass."""

Loss: TypeAlias = Callable[[Tensor, Batch], Tensor]
"""A pack's outputs and their batch to every lane's summed loss, [K]; see `Task.loss_sums`."""


Shares: TypeAlias = tuple[Tensor, Tensor]
"""What a summed loss is multiplied by, 1 / weight, and what a row counts, 1 / rows of the step."""


def _no_divergence(one: Tensor, other: Tensor, batch: Batch) -> Tensor:
    raise RuntimeError("these steps were not told how two passes are compared")


class Recorder(Protocol):
    """Makes a replay out of something that runs on fixed buffers."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that repeats `run` and gives its result, in a buffer that it reuses."""


class GraphRecorder:
    """CUDA graphs that share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Recorder`; raises RuntimeError where something in `run` cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def recorder_for(device: torch.device) -> Recorder | None:
    """Graphs on CUDA devices; None elsewhere, where a launch costs next to nothing."""
    return GraphRecorder() if device.type == "cuda" else None


class Steps:
    """The steps of one pack, which must be `running` while they are taken.

    Args:
        pack: The lanes.
        optimizer: Of the pack's tensors.
        loss: Of the task.
        divergence: Of the task, see `Task.divergence_sums`; needed where lanes compare passes.
        precision: `fp32` or `bf16` (autocast).
        recorder: Captures passes from the second of each shape on; None runs all eagerly.

    Attributes:
        replayed: Passes that were replayed.
    """

    def __init__(
        self,
        pack: Pack,
        optimizer: LaneAdamW,
        loss: Loss,
        *,
        divergence: Divergence = _no_divergence,
        precision: str = "fp32",
        recorder: Recorder | None = None,
    ) -> None:
        self._pack, self._optimizer, self._loss = pack, optimizer, loss
        self._comparison = Comparison.of(pack, divergence)
        self._precision, self._recorder = precision, recorder
        self._seen: dict[_Shape, Mapping[DrawKey, bool]] = {}
        self._passes: dict[_Shape, _RecordedPass] = {}
        self._draws: dict[str, Tensor] = {}
        self._update: tuple[Tensor, Callable[[], Tensor]] | None = None
        self._captures_update = recorder is not None
        self._warned = False
        self.replayed = 0

    def accumulate(
        self, batch: Batch, known: Mapping[int, Tensor], uniform: StepUniform, *, weight: int
    ) -> Tensor:
        """Add a batch's gradients to the optimizer's.

        Args:
            batch: The rows.
            known: Trunk inputs, see `Pack.forward`.
            uniform: The step's draws.
            weight: What the losses are a mean over, see `Task.weight`.

        Returns:
            Every lane's share of the step's loss, [K].
        """
        shape, shares = _Shape.of(batch, known), (1.0 / weight, 1.0 / uniform.batch_rows)
        if shape in self._passes or self._record(shape, batch, known):
            self.replayed += 1
            return self._passes[shape].replay(batch, known, uniform, shares)
        draws = _Noting(uniform)
        losses = self._pass(batch, known, draws, _buffers(shares, self._pack.device))
        self._seen.setdefault(shape, draws.per_row)
        return losses

    def update(self, factors: Tensor) -> None:
        """One update of every lane, see `LaneAdamW.step`."""
        if self._update is not None:
            buffer, replay = self._update
            buffer.copy_(factors)
            replay()
            return
        self._stepped(factors)
        if self._captures_update and self._passes:
            self._update = self._recorded_update(factors.clone())
            self._captures_update = False  # one try: where it failed, it would fail again

    def _stepped(self, factors: Tensor) -> None:
        """Gradients of what operators add to the loss by themselves, and the optimizer's step."""
        own = self._pack.auxiliary_loss()
        if own is not None and own.requires_grad:  # a rule may have frozen all that it is of
            torch.autograd.backward(own)
        self._optimizer.step(factors)

    def _pass(
        self, batch: Batch, known: Mapping[int, Tensor], uniform: Uniform, shares: Shares
    ) -> Tensor:
        share, row_share = shares
        call = Call(training=True, uniform=uniform, row_share=row_share)
        with autocast(self._pack.device, self._precision):
            outputs = self._pack(batch, call, known)
            losses = self._loss(outputs, batch) * share
            whole = losses.sum()
            if self._comparison is not None:
                whole = whole + self._comparison.loss(outputs, batch, call, known) * share
        torch.autograd.backward(whole)
        return losses.detach()

    def _record(self, shape: "_Shape", batch: Batch, known: Mapping[int, Tensor]) -> bool:
        """Capture a shape that has been seen before; whether it can be replayed."""
        if shape not in self._seen or self._recorder is None:
            return False
        if len(self._passes) >= MAX_GRAPHS:
            self._warn_of_shapes()
            return False
        try:
            recorded = _RecordedPass(batch, known, self._seen[shape], self._draws)
            recorded.record(self._recorder, self._pass)
        except RuntimeError as error:  # out of memory is one too: no graph keeps any then
            logger.warning("steps run eagerly, since one could not be captured: %s", error)
            self._recorder = None
            self._passes.clear()
            self._draws.clear()
            return False
        self._passes[shape] = recorded
        return True

    def _warn_of_shapes(self) -> None:
        if not self._warned:
            logger.warning(
                "over %d shapes of batches: those that come after them run eagerly", MAX_GRAPHS
            )
        self._warned = True

    def _recorded_update(self, factors: Tensor) -> tuple[Tensor, Callable[[], Tensor]] | None:
        if self._recorder is None:
            return None

        def run() -> Tensor:
            self._stepped(factors)
            return factors

        try:
            return factors, self._recorder.record(run)
        except RuntimeError as error:
            logger.warning("updates run eagerly, since one could not be captured: %s", error)
            return None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context of a pass at `fp32` or `bf16`; weights are cast anew in each (see `Steps`)."""
    if precision != "bf16":
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=torch.bfloat16, cache_enabled=False
    )
    return context


def _buffers(shares: tuple[float, float], device: torch.device) -> Shares:
    share, row_share = (torch.full((), value, device=device) for value in shares)
    return share, row_share


@dataclass(frozen=True)
class _Shape:
    """What a recorded pass is made for."""

    rows: int
    tokens: int
    targets: int
    known: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch, known: Mapping[int, Tensor]) -> "_Shape":
        targets = 0 if batch.targets is None else len(batch.targets.positions)
        return cls(len(batch), batch.tokens, targets, tuple(sorted(known)))


class _Noting:
    """Draws that note what is drawn, and whether every row has its own; see `Uniform`.

    Args:
        uniform: Where they come from.
    """

    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform
        self.per_row: dict[DrawKey, bool] = {}

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """See `Uniform`."""
        self.per_row[name, tuple(shape)] = per_row
        return self._uniform(name, shape, per_row=per_row)

    def seed(self, name: str) -> int:
        """See `Uniform`."""
        return self._uniform.seed(name)


class _Kept:
    """Draws from buffers that are filled before every replay; see `Uniform`.

    Args:
        draws: The buffers.
    """

    def __init__(self, draws: Mapping[DrawKey, Tensor]) -> None:
        self._draws = draws

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """See `Uniform`."""
        return self._draws[name, tuple(shape)]

    def seed(self, name: str) -> int:
        """RuntimeError: a replay would draw the same at every step."""
        raise RuntimeError(f"{name} draws by itself, which no replay can do anew")


def _buffer(
    storage: dict[str, Tensor], name: str, shape: Sequence[int], device: torch.device
) -> Tensor:
    """A view of a name's flat buffer, which is made anew where it is too small."""
    size = math.prod(shape)
    if name not in storage or storage[name].numel() < size:
        storage[name] = torch.empty(size, device=device)
    return storage[name][:size].view(*shape)


class _RecordedPass:
    """One pass on fixed buffers.

    Args:
        batch: Gives the shapes.
        known: Gives the shapes.
        draws: The pass's random draws, and whether every row has its own.
        storage: Flat buffers that all passes use in turns, by name and how often a pass has drawn
            it; larger ones replace them.
    """

    def __init__(
        self,
        batch: Batch,
        known: Mapping[int, Tensor],
        draws: Mapping[DrawKey, bool],
        storage: dict[str, Tensor],
    ) -> None:
        self._batch = batch.clone()
        self._known = {layer: tensor.clone() for layer, tensor in known.items()}
        device = batch.mask.device
        self._per_row = dict(draws)
        self._draws: dict[DrawKey, Tensor] = {}
        for name, shape in draws:
            before = sum(other == name for other, _ in self._draws)
            self._draws[name, shape] = _buffer(storage, f"{name}/{before}", shape, device)
        self._shares = _buffers((0.0, 0.0), device)
        self._replay: Callable[[], Tensor] | None = None

    def record(
        self,
        recorder: Recorder,
        run: Callable[[Batch, Mapping[int, Tensor], Uniform, Shares], Tensor],
    ) -> None:
        """Capture the pass."""
        draws = _Kept(self._draws)
        self._replay = recorder.record(lambda: run(self._batch, self._known, draws, self._shares))

    def replay(
        self,
        batch: Batch,
        known: Mapping[int, Tensor],
        uniform: StepUniform,
        shares: tuple[float, float],
    ) -> Tensor:
        """The pass on other contents; its losses [K], in a tensor of their own."""
        if self._replay is None:
            raise RuntimeError("the pass has not been recorded")
        self._batch.copy_(batch)
        for layer, tensor in self._known.items():
            tensor.copy_(known[layer], non_blocking=True)
        for (name, shape), tensor in self._draws.items():
            draw = uniform(name, shape, per_row=self._per_row[name, shape])
            tensor.copy_(draw, non_blocking=True)
        for buffer, value in zip(self._shares, shares, strict=True):
            buffer.fill_(value)
        return self._replay().clone()
