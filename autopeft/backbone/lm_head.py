"""The language model head of a causal backbone, as a frozen value.

Lanes train on the base model's hidden states; what the `...ForCausalLM` class does beyond the base
model is one linear map (tied or not), in some families a scale (Cohere, Granite) and a soft cap
(Gemma). That this is all is checked on the loaded model itself, since a head that is understood
only nearly would train every lane against wrong losses, in silence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.errors import BackboneError, Fault

SCALES: Mapping[str, Callable[[float], float]] = {
    "logit_scale": float,
    "logits_scaling": lambda divisor: 1.0 / divisor,
}
"""Configuration keys of a factor on the logits: Cohere multiplies by it, Granite divides."""

SOFTCAP = "final_logit_softcapping"
"""Gemma's configuration key: logits are kept within +-cap by cap * tanh(logits / cap)."""

PROBE_TOKENS = 4
PROBE_LOGIT = 50.0
"""The largest logit of the scaled probe: far into Gemma's soft cap of 30."""


@dataclass(frozen=True, eq=False)
class LmHead:
    """From hidden states to logits over the vocabulary; frozen like the backbone.

    Attributes:
        weight: [V, d], the output embeddings (the input's own tensor where they are tied).
        bias: [V], or None.
        scale: Factor on the logits.
        softcap: Logits stay within +-softcap, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] -> [..., V], in the head's dtype; gradients flow to `hidden` alone."""
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@torch.no_grad()
def lm_head_of(model: nn.Module) -> LmHead:
    """The head of a `...ForCausalLM` model in eval mode, checked against the model's own logits.

    On the meta device nothing can be checked; the head is then as the configuration says.

    Raises:
        BackboneError: The class does anything else between hidden states and logits.
    """
    causal: Any = model
    outputs = causal.get_output_embeddings()
    if not isinstance(outputs, nn.Linear):
        raise _not_understood(causal, "has no linear output embeddings")
    head = LmHead(
        weight=outputs.weight.detach(),
        bias=None if outputs.bias is None else outputs.bias.detach(),
        scale=_scale(causal.config),
        softcap=getattr(causal.config, SOFTCAP, None),
    )
    if outputs.weight.device.type != "meta":
        _verify(causal, outputs, head)
    return head


def _scale(config: Any) -> float:
    scale = 1.0
    for key, factor in SCALES.items():
        value = getattr(config, key, None)
        if isinstance(value, int | float):
            scale *= factor(value)
    return scale


def _verify(causal: Any, outputs: nn.Linear, head: LmHead) -> None:
    """Hold the head against the class's own logits on a few tokens.

    The class must feed the base model's hidden states to its output embeddings unchanged. There,
    three rows are put in their place: as they are, scaled up until a soft cap shows, and zero,
    where nothing but a bias remains.
    """
    tokens = torch.arange(1, 1 + PROBE_TOKENS, device=outputs.weight.device) % head.vocabulary
    ids = tokens.repeat(3, 1)
    hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    plain = functional.linear(hidden[0].to(head.weight.dtype), head.weight).abs().max().item()
    factors = torch.tensor([1.0, PROBE_LOGIT / max(plain * abs(head.scale), 1e-6), 0.0])
    rows = hidden * factors.to(hidden).view(3, 1, 1)
    seen: list[Tensor] = []

    def put(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (rows.to(args[0].dtype),)

    handle = outputs.register_forward_pre_hook(put)
    try:
        logits = causal(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if len(seen) != 1 or not _close(seen[0], hidden):
        raise _not_understood(causal, "transforms the hidden states before its output embeddings")
    expected = head.logits(rows)
    if not all(_close(*pair) for pair in zip(logits, expected, strict=True)):
        raise _not_understood(causal, "does more to its logits than a scale and a soft cap")


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding in the coarser of the two dtypes."""
    if actual.shape != expected.shape:
        return False
    eps = max(torch.finfo(actual.dtype).eps, torch.finfo(expected.dtype).eps)
    tolerance = 8 * eps * expected.abs().max().item()
    return bool((actual.double() - expected.double()).abs().max().item() <= tolerance)


def _not_understood(causal: Any, what: str) -> BackboneError:
    given = f"architecture {causal.config.model_type!r}, whose {type(causal).__name__} {what}"
    allowed = "causal language models whose logits are a linear map of the hidden states"
    return BackboneError(Fault("model", "task", given, allowed, "try another decoder"))
