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
    losses, correct = _TokenLosses.apply(hidden, tokens, _cast(head, hidden))  # type: ignore[no-untyped-call]
    return losses, correct


def token_divergences(one: Tensor, other: Tensor, head: LmHead) -> Tensor:
    """How far apart what is predicted from two hidden states is: (KL(p|q) + KL(q|p)) / 2.

    Args:
        one: [N, d].
        other: [N, d].
        head: The frozen head.

    Returns:
        float32 [N] in nats (float64 where the hidden states are), differentiable with respect to
        both.
    """
    result: Tensor = _TokenDivergences.apply(one, other, _cast(head, one))  # type: ignore[no-untyped-call]
    return result


def _cast(head: LmHead, hidden: Tensor) -> LmHead:
    """The head in autocast's type: cast once, not in every chunk."""
    if not torch.is_autocast_enabled(hidden.device.type):
        return head
    return replace(head, weight=head.weight.to(torch.get_autocast_dtype(hidden.device.type)))


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


class _TokenDivergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, head: LmHead) -> Tensor:
        rows = max(1, CHUNK_ELEMENTS // head.vocabulary)
        first, second = (torch.split(hidden.detach(), rows) for hidden in (one, other))
        needs_grad = one.requires_grad or other.requires_grad
        parts = [
            _compared(a, b, head, needs_grad=needs_grad)
            for a, b in zip(first, second, strict=True)
        ]
        apart, *grads = zip(*parts, strict=True)
        if needs_grad:
            ctx.save_for_backward(*(torch.cat(each) for each in grads))
        return torch.cat(apart)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        first, second = (g * grad.to(g.dtype).unsqueeze(1) for g in ctx.saved_tensors)
        return first, second, None


def _compared(
    one: Tensor, other: Tensor, head: LmHead, *, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergences, and the gradients of their sum with respect to both hidden states."""
    with torch.enable_grad() if needs_grad else torch.no_grad():
        hidden = [each.requires_grad_(needs_grad) for each in (one, other)]
        logits = [head.logits(each) for each in hidden]
        p, q = (own if own.dtype == torch.float64 else own.float() for own in logits)
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        apart = 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)
        grads = torch.autograd.grad(apart.sum(), hidden) if needs_grad else hidden
    return apart.detach(), grads[0], grads[1]
