"""Operators of trained rows, columns and blocks: what they cost follows what they train.

All keep the trained change of W alone, `values`, and know by `index` where it belongs. Lanes of
one size class are stacked and padded; a padded unit adds nothing, since what it reads or writes is
multiplied by `valid`, 0 there, and so its gradient is exactly zero.

What they take beside LoRA with as many parameters is in docs/lanes.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.products import lane_product
from autopeft.methods.lane_operator import Call, LaneOperator, Stack

NORMAL_LIMIT = 1.0 - 2.0**-24
"""A uniform draw of 0 or 1 would be an infinite normal one."""


class SparseOperator(LaneOperator):
    """What all have in common.

    Attributes:
        values: The trained change of W at the chosen units, [k, ...].
        index: int64 [k, n], where these are; see `units.fixed_index`.
        valid: [k, n], 0 where a lane is padded.
    """

    fixed_names: tuple[str, ...] = ("index",)
    values: Tensor
    index: Tensor
    valid: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.d_in, self.d_out = stack.place.d_in, stack.place.d_out
        self.own_numbers = [shape[0] for shape in self.own_shapes["index"]]
        self._padded = len(set(self.own_numbers)) > 1
        numbers = torch.tensor(self.own_numbers)
        steps = torch.arange(int(numbers.max()))
        self.register_buffer("valid", (steps.unsqueeze(0) < numbers.unsqueeze(1)).double())

    def silenced(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """A tensor with zeros in padded units; `shape` is how `valid` is seen beside it."""
        if not self._padded:
            return tensor
        return tensor * self.valid.to(tensor.dtype).view(*shape)


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, dim: int, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.dim, ctx.shape = dim, source.shape
        return source.gather(dim, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).scatter_add_(ctx.dim, index, grad), None, None


def taken(source: Tensor, dim: int, index: Tensor) -> Tensor:
    """`source.gather(dim, index)`, of which autograd keeps the index alone and not the source."""
    result: Tensor = _Taken.apply(source, dim, index)  # type: ignore[no-untyped-call]
    return result


class OutputColumns(SparseOperator):
    """Columns of W, values [k, d_in, n]: x V, added to n of the outputs."""

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x V at the chosen outputs, zero elsewhere."""
        made = lane_product(x.flatten(1, 2), self.values)
        made = self.silenced(made, (len(self.valid), 1, -1))
        out = made.new_zeros(*made.shape[:2], self.d_out)
        out.scatter_add_(2, self.index.unsqueeze(1).expand_as(made), made)
        return out.view(*x.shape[:3], self.d_out)


class InputRows(SparseOperator):
    """Rows of W, values [k, n, d_out]: n of the inputs times V. Keeps n scalars per token."""

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """The chosen inputs times V."""
        rows = x.flatten(1, 2)
        at = self.index.unsqueeze(1).expand(-1, rows.shape[1], -1)
        read = self.silenced(taken(rows, 2, at), (len(self.valid), 1, -1))
        return lane_product(read, self.values).view(*x.shape[:3], self.d_out)


class NoisyInputRows(InputRows):
    """The same, with noise on all other rows while it trains (GIFT-SW, arXiv 2408.15300).

    The frozen weights of the other rows get N(0, 1) / 2 times a quantisation step, drawn once per
    optimizer step and the same for all lanes; in evaluation there is none. The noise is a dense
    matrix, so that such a lane costs as much as the frozen map once more.

    Attributes:
        step: [k, d_out], the quantisation step of each output's weights; see `quantisation_step`.
        others: [k, d_in], 0 at the chosen rows.
    """

    fixed_names = ("index", "step")
    step: Tensor
    others: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        others = torch.ones(len(stack.members), stack.place.d_in, dtype=torch.float64)
        for lane, own in zip(others, stack.tensors, strict=True):
            lane[own["index"]] = 0.0
        self.register_buffer("others", others)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """The chosen inputs times V, and the others times noise."""
        delta = super().delta(x, y, call)
        if not call.training:
            return delta
        draw = call.uniform(f"{self.name}.noise", (self.d_in, self.d_out), per_row=False)
        normal = _normal(draw).to(x.dtype)
        rows = x.flatten(1, 2) * self.others.unsqueeze(1)
        noise = (rows @ normal) * (0.5 * self.step).unsqueeze(1)
        return delta + noise.view_as(delta)


def _normal(uniform: Tensor) -> Tensor:
    """N(0, 1) from uniform [0, 1): sqrt 2 erfinv(2 u - 1)."""
    centred = (2.0 * uniform - 1.0).clamp(-NORMAL_LIMIT, NORMAL_LIMIT)
    normal: Tensor = torch.erfinv(centred) * 2.0**0.5
    return normal


CLIP_LEVELS = 80
"""Levels that are tried: 1.00, 0.99, ... 0.21 of the largest weight."""


def quantisation_step(weight: Tensor, bits: int, chosen: Tensor) -> Tensor:
    """The step of symmetric quantisation of every output's weights, by the best clip level.

    step_j = alpha_j / (2^(bits - 1) - 1), alpha_j the clip level whose quantised weights are
    nearest to the weights (L2). The chosen rows stay as they are in full precision, and are left
    out.

    Args:
        weight: W, [d_in, d_out].
        bits: At least 2.
        chosen: The rows that are trained, int64 [n].

    Returns:
        [d_out].
    """
    levels = 2.0 ** (bits - 1) - 1.0
    left = weight.clone()
    left[chosen] = 0.0
    largest = left.abs().amax(0).clamp_min(torch.finfo(weight.dtype).tiny)
    best, least = largest / levels, torch.full_like(largest, float("inf"))
    for percent in range(100, 100 - CLIP_LEVELS, -1):
        step = largest * (percent / 100.0) / levels
        quantised = (left / step).round().clamp(-levels - 1.0, levels) * step
        error = (quantised - left).square().sum(0)
        best = torch.where(error < least, step, best)
        least = torch.minimum(error, least)
    return best


class Blocks(SparseOperator):
    """Blocks of side b, values [k, n, b, b]; `index` counts blocks row by row.

    Keeps n b scalars per token: what each block reads.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._side = int(stack.groups[0]["block"])
        self._rows, self._columns = (d // self._side for d in (self.d_in, self.d_out))

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """The blocks of x times theirs of V, added to the blocks of the output."""
        k, b = len(self.valid), self._side
        rows = x.flatten(1, 2)[..., : self._rows * b]
        tokens = rows.shape[1]
        parts = rows.view(k, tokens, self._rows, b).transpose(1, 2)
        shape = (k, -1, tokens, b)
        reads = (self.index // self._columns).view(k, -1, 1, 1).expand(shape)
        writes = (self.index % self._columns).view(k, -1, 1, 1).expand(shape)
        read = taken(parts, 1, reads)
        made = lane_product(read.flatten(0, 1), self.values.flatten(0, 1)).view(read.shape)
        made = self.silenced(made, (k, -1, 1, 1))
        out = made.new_zeros(k, self._columns, tokens, b)
        out.scatter_add_(1, writes, made)
        whole = out.transpose(1, 2).flatten(2)
        whole = functional.pad(whole, (0, self.d_out - self._columns * b))
        return whole.view(*x.shape[:3], self.d_out)
