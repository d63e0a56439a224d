"""Chunked losses against plain cross-entropy over all logits."""

import pytest
import torch
from torch.nn import functional

from autopeft.backbone.lm_head import LmHead
from autopeft.training.tasks import token_loss
from autopeft.training.tasks.token_loss import token_divergences, token_losses

N, WIDTH, VOCABULARY = 37, 8, 50


def _head(*, softcap: float | None = None, scale: float = 1.0) -> LmHead:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    return LmHead(weight, bias, scale=scale, softcap=softcap)


@pytest.mark.parametrize("head", [_head(), _head(softcap=2.0, scale=0.25)])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    head: LmHead, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", rows * VOCABULARY)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, VOCABULARY, (N,), generator=generator)
    weights = torch.rand(N, generator=generator, dtype=torch.float64)
    losses, hits = token_losses(hidden, tokens, head)
    (grad,) = torch.autograd.grad((losses * weights).sum(), hidden)
    logits = head.logits(hidden)
    expected = functional.cross_entropy(logits, tokens, reduction="none")
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    assert torch.allclose(losses, expected, atol=1e-12)
    assert torch.allclose(grad, expected_grad, atol=1e-12)
    assert torch.equal(hits, logits.argmax(-1) == tokens)


def test_logits_of_all_positions_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    sizes: list[int] = []
    logits = LmHead.logits

    def noting(self: LmHead, hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(LmHead, "logits", noting)
    hidden = torch.zeros(N, WIDTH, dtype=torch.float64, requires_grad=True)
    losses, _ = token_losses(hidden, torch.zeros(N, dtype=torch.long), _head())
    losses.sum().backward()
    assert max(sizes) == 5
    assert sum(sizes) == N, "the backward pass computed logits again"


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    losses, _ = token_losses(torch.zeros(3, WIDTH).double(), torch.zeros(3).long(), _head())
    assert not losses.requires_grad


@pytest.mark.parametrize("rows", [5, 1000])
def test_divergences_and_gradients_are_those_of_all_logits_at_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", rows * VOCABULARY)
    head, generator = _head(softcap=2.0, scale=0.25), torch.Generator().manual_seed(2)
    hidden = torch.randn(2, N, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(N, generator=generator, dtype=torch.float64)
    found = token_divergences(hidden[0], hidden[1], head)
    (grad,) = torch.autograd.grad((found * weights).sum(), hidden)
    p, q = (head.logits(own).log_softmax(-1) for own in hidden)
    both = (
        functional.kl_div(*pair, log_target=True, reduction="none") for pair in ((p, q), (q, p))
    )
    expected = sum(each.sum(-1) for each in both) / 2
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(grad, expected_grad, atol=1e-12)
    assert not token_divergences(*hidden.detach(), head).requires_grad
