"""Losses of next tokens in chunks: logits of all positions never exist at once.

The language-model head is frozen, so all that the backward pass needs of it is the gradient with
respect to the hidden states. That is computed chunk by chunk in the forward pass, while a chunk's
logits are there, and kept in their place: [N, d] in place of [N, vocabulary].
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.lm_head import LmHead

CHUNK_ELEMENTS = 1 << 23
"""Logits of a chunk, 32 MiB in float32: small beside a backbone, large enough for a full matrix
product (rows of a 128k vocabulary come 64 at a time)."""


def token_losses(hidden: Tensor, tokens: Tensor, head: LmHead) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods of tokens, and whether each is the likeliest.

    Args:
        hidden: [N, d], the hidden state of the position before each token.
        tokens: int64 [N].
        head: The frozen head.

    Returns:
        float32 [N] in nats (float64 where the hidden states are), differentiable with respect to
        `hidden`; bool [N].
    """
    if torch.is_autocast_enabled(hidden.device.type):  # once, not in every chunk
        dtype = torch.get_autocast_dtype(hidden.device.type)
        head = replace(head, weight=head.weight.to(dtype))
    losses, correct = _TokenLosses.apply(hidden, tokens, head)  # type: ignore[no-untyped-call]
    return losses, correct


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tokens: Tensor, head: LmHead) -> tuple[Tensor, Tensor]:
        rows = max(1, CHUNK_ELEMENTS // head.vocabulary)
        needs_grad = hidden.requires_grad
        chunks = zip(torch.split(hidden.detach(), rows), torch.split(tokens, rows), strict=True)
        parts = [_chunk(own, target, head, needs_grad=needs_grad) for own, target in chunks]
        losses, correct, grads = zip(*parts, strict=True)
        if needs_grad:
            ctx.save_for_backward(torch.cat(grads))
        flags = torch.cat(correct)
        ctx.mark_non_differentiable(flags)
        return torch.cat(losses), flags

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * grad_losses.to(grads.dtype).unsqueeze(1), None, None


def _chunk(
    hidden: Tensor, tokens: Tensor, head: LmHead, *, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, hits, and the gradient of the losses' sum with respect to the hidden states."""
    with torch.enable_grad() if needs_grad else torch.no_grad():
        hidden = hidden.requires_grad_(needs_grad)
        logits = head.logits(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = functional.cross_entropy(logits, tokens, reduction="none")
        grad = torch.autograd.grad(losses.sum(), hidden)[0] if needs_grad else hidden
    return losses.detach(), logits.detach().argmax(-1) == tokens, grad
