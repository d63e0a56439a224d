"""Losses that operators add to their own lanes' by what they compute: penalties of activations.

A penalty that depends on tensors alone is `LaneOperator.auxiliary_loss`. One that depends on what
an operator (or a hook on the backbone) computes belongs to a layer that may be recomputed in the
backward pass, to a micro-batch that is a part of a step, and to a computation whose output may not
be used. So it is not handed on beside the output, but hung on it: the output's values stay as they
are, and the backward pass that reaches the output takes the penalty's gradient along (as in
Megatron-LM's `MoEAuxLossAutoScaler`).

It is written per row (example): a step's penalty is the mean over its rows, however they are cut
into micro-batches. Like `auxiliary_loss` it counts into gradients, not into reported losses.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.methods.lane_operator import Call


def with_row_losses(out: Tensor, losses: Tensor, call: Call) -> Tensor:
    """`out`, whose backward pass adds the gradient of every lane's mean row loss.

    Lanes do not meet: each lane's losses must depend on that lane alone. Where an output is not
    used (the last layer's, for tokens that the head does not read), neither are its losses.

    Args:
        out: What the losses go with, of any shape.
        losses: [k, B], of every member and row, coefficients included.
        call: The pass; outside training nothing is added.
    """
    if call.row_share is None:
        return out
    result: Tensor = _WithLosses.apply(out, losses, call.row_share)  # type: ignore[no-untyped-call]
    return result


def real_tokens(call: Call, tokens: int) -> Tensor:
    """Which of the tokens that a layer runs on are real, [B, tokens].

    A layer runs on a batch's tokens, on the first alone, or on more: those behind are none of the
    batch's, and not real.

    Raises:
        RuntimeError: Outside training, or where the layer's tokens are fewer.
    """
    width = 0 if call.mask is None else call.mask.shape[1]
    if call.mask is None or 1 < tokens < width:
        raise RuntimeError(f"a mask of {width} tokens says nothing of {tokens}")
    return functional.pad(call.mask[:, :tokens], (0, max(0, tokens - width)))


class _WithLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, losses: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        ctx.losses = losses.shape, losses.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (share,), (shape, dtype) = ctx.saved_tensors, ctx.losses
        return grad, share.to(dtype).expand(shape), None
