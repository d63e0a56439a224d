"""Changes of W that are formed as whole matrices: made anew in the backward pass, never kept.

An operator gives its change of W as a function of its trained tensors. What is kept for the
backward pass are x and those tensors; the change itself exists while something is multiplied with
it. Its gradient x^T g has the same shape: such a lane costs as much as a fully trained map.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from autopeft.methods.base import Kept
from autopeft.methods.lane_operator import Call, LaneOperator, Place

Change = Callable[..., Tensor]


class DenseOperator(LaneOperator):
    """x times a change of W that is made of all trained tensors."""

    def change(self, *trained: Tensor) -> Tensor:
        """The lanes' changes [k, d_in, d_out].

        Args:
            trained: The stacked tensors in the order of `stacked_names`.
        """
        raise TypeError(f"{type(self).__name__} forms no change of a weight")

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x times the change."""
        trained = [self.get_parameter(name) for name in self.stacked_names]
        return dense_product(x, self.change, trained)


def dense_product(x: Tensor, change: Change, trained: Sequence[Tensor]) -> Tensor:
    """[k, B, T, d_in] times `change(*trained)` [k, d_in, d_out]."""
    made: Tensor = _Product.apply(x.flatten(1, 2), change, *trained)  # type: ignore[no-untyped-call]
    return made.view(*x.shape[:3], -1)


def dense_kept(place: Place) -> Kept:
    """What such an operator keeps: x; and W's size while it runs."""
    return Kept(weights=place.d_in * place.d_out, reads_exactly=True)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Change, *trained: Tensor) -> Tensor:
        """[k, R, d_in] times the change, [k, R, d_out]."""
        ctx.save_for_backward(x, *trained)
        ctx.change = change
        return torch.bmm(x, _formed(change, trained))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *trained = ctx.saved_tensors
        leaves = [tensor.detach().requires_grad_() for tensor in trained]
        with torch.enable_grad():
            dense = _formed(ctx.change, leaves)
        grad_x = torch.bmm(grad, dense.detach().to(grad.dtype).transpose(1, 2)).to(x.dtype)
        whole = torch.bmm(x.to(grad.dtype).transpose(1, 2), grad).to(dense.dtype)
        return grad_x, None, *torch.autograd.grad(dense, leaves, whole)


def _formed(change: Change, trained: Sequence[Tensor]) -> Tensor:
    with torch.autocast(trained[0].device.type, enabled=False):
        return change(*trained)
