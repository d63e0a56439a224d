"""A backbone whose hidden states are changed by plain hooks, run as transformers runs it.

Nothing of lanes, operators or packs takes part, so that it can be what those are held against. A
reference says what changes: `at_input` and `at_output` give a layer's hidden states, `before` the
tokens that stand before the text, `keys_values` keys and values before a layer's own, `heads` what
is added to the output of every head. Where HF `peft` has the method,
`peft_config(settings, anatomy)` is its configuration, and `encoded(settings, tensors, turn)` the
table of its encoder.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from autopeft.backbone.loading import Backbone
from autopeft.training.batches import Batch

ATTENTION = "reference_attention"
ABSOLUTE = ("bert", "gpt2", "opt")
"""Architectures whose text would move, were it not told its positions."""

Tensors = Mapping[int, Mapping[str, Tensor]]
"""By layer, a lane's tensors there by name, those that it shares among them."""


def output_of(
    backbone: Backbone,
    reference: ModuleType,
    settings: Mapping[str, Any],
    tensors: Tensors,
    batch: Batch,
) -> Any:
    """`last_hidden_state` [B, T, d] of the text and, where there is a pooler, `pooler_output`."""
    model: Any = backbone.model
    prompts = {
        layer: reference.before(settings, own)
        for layer, own in tensors.items()
        if hasattr(reference, "before")
    }
    length = max((len(tokens) for tokens in prompts.values()), default=0)
    with ExitStack() as stack:
        for layer, own in tensors.items():
            module = model.get_submodule(backbone.anatomy.layers[layer].module)
            hook = _Ends(reference, settings, own, batch.mask, prompts.get(layer))
            stack.callback(module.register_forward_pre_hook(hook.enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(hook.leave).remove)
        if length or any(hasattr(reference, each) for each in ("heads", "keys_values")):
            stack.enter_context(_attention(backbone, reference, settings, tensors, length))
        out = model(**_longer(backbone, batch, length))
    hidden = out.last_hidden_state[:, length:]
    pooler = getattr(model, "pooler", None)
    return SimpleNamespace(
        last_hidden_state=hidden, pooler_output=pooler(hidden) if pooler else None
    )


def _longer(backbone: Backbone, batch: Batch, length: int) -> dict[str, Tensor]:
    """A model's inputs with so many tokens before the text, whose embeddings mean nothing."""
    inputs = dict(batch.inputs)
    if not length or "input_ids" not in inputs:
        return inputs
    inputs = {
        "input_ids": functional.pad(inputs["input_ids"], (length, 0), value=3),
        "attention_mask": functional.pad(inputs["attention_mask"], (length, 0), value=1),
    }
    if backbone.anatomy.architecture in ABSOLUTE:
        positions = torch.arange(batch.mask.shape[1]).repeat(len(batch), 1)
        inputs["position_ids"] = functional.pad(positions, (length, 0))
    return inputs


class _Ends:
    """What changes at the input and the output of one layer."""

    def __init__(
        self,
        reference: ModuleType,
        settings: Mapping[str, Any],
        own: Mapping[str, Tensor],
        mask: Tensor,
        prompt: Tensor | None,
    ) -> None:
        self._reference, self._settings, self._own = reference, settings, own
        self._mask, self._prompt = mask, prompt

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's input, changed."""
        given = kwargs.get("hidden_states", args[0] if args else None)
        text = given[:, given.shape[1] - self._mask.shape[1] :]
        if hasattr(self._reference, "at_input"):
            text = self._reference.at_input(self._settings, self._own, text, self._mask)
        if self._prompt is not None:
            before = self._prompt.expand(len(text), -1, -1)
            text = torch.cat([before, text], dim=1)
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": text}
        return (text, *args[1:]), kwargs

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The layer's output, changed."""
        if not hasattr(self._reference, "at_output"):
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = self._reference.at_output(self._settings, self._own, hidden, self._mask)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def _attention(
    backbone: Backbone,
    reference: ModuleType,
    settings: Mapping[str, Any],
    tensors: Tensors,
    length: int,
) -> Iterator[None]:
    """Attention to which heads are added, and in which prompts have no bias and no window."""
    model: Any = backbone.model
    modules = [model.get_submodule(layer.attention) for layer in backbone.anatomy.layers]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any
    ) -> tuple[Tensor, None]:
        if length and given.get("position_bias") is not None:
            bias = given["position_bias"].clone()
            bias[..., :length, :] = bias[..., :length] = 0.0
            given["position_bias"] = bias
        if length and mask is not None and not backbone.anatomy.causal:
            seen = mask.any(dim=2, keepdim=True)  # of padding alone
            mask = mask.clone()
            mask[..., :length] = True
            mask[:, :, :length] = seen.expand(-1, -1, length, -1)
        layer = next(i for i, each in enumerate(modules) if each is module)
        if layer in tensors and hasattr(reference, "keys_values"):
            made = reference.keys_values(settings, tensors[layer])
            if mask is None and backbone.anatomy.causal:
                mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
            mask = None if mask is None else functional.pad(mask, (len(made[0]), 0), value=True)
            if given.get("position_bias") is not None:
                bias = functional.pad(given["position_bias"], (len(made[0]), 0))
                given["position_bias"] = bias
            key, value = (_after(*each) for each in zip(made, (key, value), strict=True))
        out, _ = sdpa_attention_forward(module, query, key, value, mask, **given)
        if layer in tensors and hasattr(reference, "heads"):
            scale = given.get("scaling")
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            added = reference.heads(backbone, layer, tensors[layer], query * scale)
            out = out + added.transpose(1, 2)
        return out, None

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before = str(model.config._attn_implementation)
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _after(made: Tensor, own: Tensor) -> Tensor:
    """Keys or values [P, n_kv_heads w] before a layer's [B, n_kv_heads, T, w]."""
    rows, heads, _, width = own.shape
    by_head = made.view(len(made), heads, width).transpose(0, 1)
    return torch.cat([by_head.expand(rows, -1, -1, -1), own], dim=2)
