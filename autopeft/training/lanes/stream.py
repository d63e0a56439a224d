"""The lane stream: what gates, operators and attention share during one forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autopeft.methods.lane_operator import Call


@dataclass
class Stream:
    """Which lanes are in the running layer call, and how their rows lie.

    Lanes are ordered by branch point, so a lane's position never changes as others join behind it.

    Attributes:
        rows: Examples per lane.
        lanes: Lanes in the running call; 0 while the trunk (or nothing) runs.
        call: The pass's training flag and draws, or None between passes.
        sublayer_inputs: Inputs of sub-layers on their way to their outputs, by (layer, name).
        below: Whether a pass of lanes runs, of which what lies below the layers is a part; a lane
            that trains there has the pass to itself.
        autocast: The type that operators are cast to while the backbone, held in it, is not; None
            where both are, or neither.
    """

    rows: int = 0
    lanes: int = 0
    below: bool = False
    call: Call | None = None
    sublayer_inputs: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    autocast: torch.dtype | None = None

    def split(self, tensor: Tensor) -> Tensor:
        """[n * B, T, d] or [n * B * T, d] -> a view [n, B, T, d]."""
        rows = tensor.shape[0] // self.lanes if tensor.dim() == 3 else self.rows
        return tensor.reshape(self.lanes, rows, -1, tensor.shape[-1])

    @contextmanager
    def running(self, lanes: int, rows: int, call: Call) -> Iterator[None]:
        """These lanes run inside; what the stream said before holds again after."""
        before = self.lanes, self.rows, self.call, self.sublayer_inputs
        self.lanes, self.rows, self.call, self.sublayer_inputs = lanes, rows, call, {}
        try:
            yield
        finally:
            self.lanes, self.rows, self.call, self.sublayer_inputs = before

    def casting(self, device: torch.device) -> AbstractContextManager[None]:
        """The context that operators are called in, see `autocast`."""
        if self.autocast is None:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(
            device.type, dtype=self.autocast, cache_enabled=False
        )
        return context

    def running_call(self) -> Call:
        """The call of the running pass."""
        if self.call is None:
            raise RuntimeError("an operator was called outside a pack's forward pass")
        return self.call


@dataclass(frozen=True)
class Members:
    """Positions of an operator's lanes in the stream, and the cheapest way to reach them.

    Attributes:
        positions: Ascending.
        index: The same as a tensor on the pack's device.
    """

    positions: tuple[int, ...]
    index: Tensor

    @classmethod
    def of(cls, positions: Sequence[int], device: torch.device) -> "Members":
        """Members at these positions."""
        return cls(tuple(positions), torch.tensor(list(positions), device=device))

    @property
    def _range(self) -> slice | None:
        first, last = self.positions[0], self.positions[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.positions) else None

    def take(self, tensor: Tensor) -> Tensor:
        """The members' part of [n, ...]: a view where they lie together, else a copy."""
        together = self._range
        return tensor[together] if together is not None else tensor.index_select(0, self.index)

    def added(self, output: Tensor, delta: Tensor, lanes: int, start: int) -> Tensor:
        """A module's output with the members' deltas added to some of its columns.

        It takes over the output's memory, so the output must not be used any more, nor be kept by
        autograd (a linear map keeps its input and weight alone). Autograd's own in-place addition
        to a part of a tensor would copy the whole gradient in the backward pass.

        Args:
            output: [n * B, T, d] or [n * B * T, d].
            delta: [k, B, T, w].
            lanes: n.
            start: First of the w columns.
        """
        result: Tensor = _Added.apply(output, delta, self, lanes, start)  # type: ignore[no-untyped-call]
        return result

    def add_(self, tensor: Tensor, delta: Tensor) -> None:
        """Add [k, ...] to the members' part of [n, ...], in place."""
        together = self._range
        if together is not None:
            tensor[together].add_(delta)
        else:
            tensor.index_add_(0, self.index, delta.to(tensor.dtype))


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, delta: Tensor, members: Members, lanes: int, start: int
    ) -> Tensor:
        ctx.members, ctx.lanes, ctx.start, ctx.shape = members, lanes, start, delta.shape
        ctx.dtype = delta.dtype
        out = output.data  # without the version counter: nobody reads the output again
        part = out.view(lanes, -1, out.shape[-1])[..., start : start + delta.shape[-1]]
        members.add_(part, delta.flatten(1, 2))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        width = ctx.shape[-1]
        rows = grad.reshape(ctx.lanes, -1, grad.shape[-1])[..., ctx.start : ctx.start + width]
        own = ctx.members.take(rows).reshape(ctx.shape).to(ctx.dtype)
        return grad, own, None, None, None
