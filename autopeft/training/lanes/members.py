"""Members: which lanes of the stream an operator has, how it takes their part and adds to it.

Autograd's own way with parts costs passes over all lanes: for each part a gradient of zeros, as
large as the whole, and its sum with the others'. What is here touches the parts alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def shared(
    tensor: Tensor, shape: Sequence[int], readers: Sequence[Members], *, by_a_map: bool
) -> tuple[Tensor, list[Tensor]]:
    """A tensor, and parts of it that others read; the gradients meet in one tensor.

    Args:
        tensor: Of all lanes.
        shape: [n, B, T, d], as which it is read.
        readers: Whose parts.
        by_a_map: Whether nothing but a linear map reads the tensor that is given back: its
            gradient is then a product that nobody else holds, and takes the parts' in.

    Returns:
        The tensor, to be used in place of the one given, and a part [k, B, T, d] for each reader,
        a view where its lanes lie together. Neither may be changed.
    """
    if not readers:
        return tensor, []
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        by_lane = tensor.reshape(shape)
        return tensor, [members.take(by_lane) for members in readers]
    whole, *parts = _Shared.apply(tensor, tuple(shape), tuple(readers), by_a_map)  # type: ignore[no-untyped-call]
    return whole, parts


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        shape: tuple[int, ...],
        readers: tuple[Members, ...],
        by_a_map: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shapes, ctx.readers, ctx.by_a_map = (tensor.shape, shape), readers, by_a_map
        parts = [members.take(tensor.reshape(shape)) for members in readers]
        return tensor.view_as(tensor), *parts

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, *grads: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        own, by_lane = ctx.shapes
        parts = [(m, g) for m, g in zip(ctx.readers, grads, strict=True) if g is not None]
        if not parts:
            return grad, None, None, None
        if grad is None:
            total = parts[0][1].new_zeros(own)
        elif ctx.by_a_map and grad.is_contiguous():
            total = grad
        else:
            total = grad.clone(memory_format=torch.contiguous_format)
        for members, part in parts:
            members.add_(total.view(by_lane), part)
        return total, None, None, None
