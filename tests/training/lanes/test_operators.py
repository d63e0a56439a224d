"""Adapters and prefixes against plain references that share no code with the lanes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes import attention
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
QUIET = Call(False, StepUniform(Seeds(0), 0, 0, 1, torch.device("cpu")))


def _pack(backbone: Backbone, *groups: Group) -> tuple[Pack, dict[str, Tensor]]:
    """A solo pack whose tensors are all random, and its tensors by name."""
    lane = Lane(0, Configuration.of(groups, training=TRAINING))
    pack = Pack(backbone, backbone.head(3), [lane], seeds=Seeds(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in pack.operators.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return pack, pack.lane_views(pack.parameters_by_name(), 0)


def _bottleneck(z: Tensor, views: dict[str, Tensor], name: str, act: Any) -> Tensor:
    hidden = act(functional.linear(z, views[f"{name}.down"].T, views[f"{name}.down_bias"]))
    return functional.linear(hidden, views[f"{name}.up"].T, views[f"{name}.up_bias"])


def _hidden(pack: Pack, backbone: Backbone, batch: Batch) -> Tensor:
    with torch.no_grad(), pack.running():
        return pack(batch, QUIET)


class _Ffn(nn.Module):
    """BERT's FFN output with both adapters, written out."""

    def __init__(self, inner: nn.Module, views: dict[str, Tensor], layer: int) -> None:
        super().__init__()
        self.inner, self.views, self.layer = inner, views, layer

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        y = self.inner.dense(hidden_states)
        serial = _bottleneck(y, self.views, f"serial_adapter.{self.layer}.ffn", torch.relu)
        parallel = _bottleneck(
            input_tensor, self.views, f"parallel_adapter.{self.layer}.ffn", functional.gelu
        )
        return self.inner.LayerNorm(y + serial + 4.0 * parallel + input_tensor)


def test_adapters_on_bert_equal_a_written_out_ffn(
    make_backbone: Callable[..., Backbone], make_batch: Callable[..., Batch]
) -> None:
    backbone, reference = make_backbone("bert"), make_backbone("bert")
    groups = [
        Group.of(
            "serial_adapter", [1], ["ffn"], size=5, activation="relu", scale=1.0, dropout=0.0
        ),
        Group.of(
            "parallel_adapter", [1], ["ffn"], size=3, activation="gelu", scale=4.0, dropout=0.0
        ),
    ]
    pack, views = _pack(backbone, *groups)
    layer = reference.model.encoder.layer[1]
    layer.output = _Ffn(layer.output, views, 1)
    batch = make_batch("bert")
    pooled = reference.model(**batch.inputs).pooler_output
    expected = pooled @ views["head.0_weight"] + views["head.0_bias"]
    assert torch.allclose(_hidden(pack, backbone, batch)[0], expected, atol=1e-10)


class _Mlp(nn.Module):
    """Llama's MLP with both adapters, written out."""

    def __init__(self, inner: nn.Module, views: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner, self.views = inner, views

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        serial = _bottleneck(y, self.views, "serial_adapter.2.ffn", torch.tanh)
        parallel = _bottleneck(x, self.views, "parallel_adapter.2.ffn", functional.silu)
        return y + 0.5 * serial + 2.0 * parallel


def test_adapters_on_llama_equal_a_written_out_mlp(
    make_backbone: Callable[..., Backbone], make_batch: Callable[..., Batch]
) -> None:
    backbone, reference = make_backbone("llama"), make_backbone("llama")
    groups = [
        Group.of(
            "serial_adapter", [2], ["ffn"], size=4, activation="tanh", scale=0.5, dropout=0.0
        ),
        Group.of(
            "parallel_adapter", [2], ["ffn"], size=6, activation="silu", scale=2.0, dropout=0.0
        ),
    ]
    pack, views = _pack(backbone, *groups)
    reference.model.layers[2].mlp = _Mlp(reference.model.layers[2].mlp, views)
    batch = make_batch("llama")
    hidden = reference.model(**batch.inputs).last_hidden_state
    last = hidden[torch.arange(len(batch)), batch.mask.sum(1) - 1]
    expected = last @ views["head.0_weight"]
    assert torch.allclose(_hidden(pack, backbone, batch)[0], expected, atol=1e-10)


def _reference_attention(prefixes: dict[int, tuple[Tensor, Tensor]], modules: list[nn.Module]):
    """Softmax attention in plain Python, prefixes first; knows nothing of lanes."""

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kw: Any
    ) -> tuple[Tensor, None]:
        layer = next(i for i, m in enumerate(modules) if m is module)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scale = kw.get("scaling")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = q @ k.transpose(2, 3) * scale
        if kw.get("position_bias") is not None:
            scores = scores + kw["position_bias"]
        if mask is not None:
            scores = (
                scores.masked_fill(~mask, -1e30) if mask.dtype == torch.bool else scores + mask
            )
        elif getattr(module, "is_causal", False):
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, -1e30)
        if layer in prefixes:
            keys, values = (
                t.view(1, t.shape[0], -1, q.shape[-1])
                .transpose(1, 2)
                .repeat_interleave(groups, 1)
                .expand(q.shape[0], -1, -1, -1)
                for t in prefixes[layer]
            )
            scores = torch.cat([q @ keys.transpose(2, 3) * scale, scores], 3)
            v = torch.cat([values, v], 2)
        return (scores.softmax(-1) @ v).transpose(1, 2).contiguous(), None

    return attend


def test_prefix_equals_plain_attention_on_every_architecture(
    architecture: str, make_backbone: Callable[..., Backbone], make_batch: Callable[..., Batch]
) -> None:
    backbone = make_backbone(architecture)
    if not backbone.anatomy.carries_prefix:
        assert architecture == "deberta-v2"
        return
    group = Group.of("prefix", [0, 2], length=3, reparametrise=False)
    pack, views = _pack(backbone, group)
    batch = make_batch(architecture)
    found = _hidden(pack, backbone, batch)[0]
    prefixes = {
        layer: (views[f"prefix.{layer}.prefix.keys"], views[f"prefix.{layer}.prefix.values"])
        for layer in (0, 2)
    }
    modules = [backbone.model.get_submodule(layer.attention) for layer in backbone.anatomy.layers]
    for name, with_prefix in (("reference_prefix", prefixes), ("reference_plain", {})):
        AttentionInterface.register(name, _reference_attention(with_prefix, modules))
        AttentionMaskInterface.register(name, sdpa_mask)
    expected = _reference_logits(backbone, "reference_prefix", batch, views)
    assert torch.allclose(found, expected, atol=1e-8)
    plain = _reference_logits(backbone, "reference_plain", batch, views)
    assert not torch.allclose(found, plain, atol=1e-4), "the prefix had no effect"


def _reference_logits(
    backbone: Backbone, attention: str, batch: Batch, views: dict[str, Tensor]
) -> Tensor:
    """The head's logits of the backbone under another attention, pooled by the pack's own head."""
    model: Any = backbone.model
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        empty = Lane(0, Configuration.of([], training=TRAINING))
        pack = Pack(backbone, backbone.head(3), [empty], seeds=Seeds(1), dtype=torch.float64)
        own = pack.lane_views(pack.parameters_by_name(), 0)
        with torch.no_grad():
            for name, view in own.items():
                view.copy_(views[name])
            with pack.running():
                return pack(batch, QUIET)[0]
    finally:
        model.set_attn_implementation(before)


@pytest.mark.parametrize("reparametrise", [False, True])
def test_prefix_counts_are_those_of_the_folded_tensors(
    reparametrise: bool, make_backbone: Callable[..., Backbone]
) -> None:
    backbone = make_backbone("llama")
    settings = {"hidden": 8} if reparametrise else {}
    group = Group.of("prefix", [1], length=5, reparametrise=reparametrise, **settings)
    pack, _ = _pack(backbone, group)
    configuration = pack.lanes[0].configuration
    trained = sum(p.numel() for p in pack.operators.parameters())
    assert counting.training_params(configuration, backbone.anatomy) == trained
    assert counting.trainable_params(configuration, backbone.anatomy) == 2 * 5 * 2 * 8


def test_attention_that_asks_for_more_than_scaled_dot_products_is_refused(
    make_backbone: Callable[..., Backbone],
) -> None:
    """transformers would leave sinks out without a word."""
    backbone = make_backbone("bert")
    module = backbone.model.get_submodule(backbone.anatomy.layers[0].attention)
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(BackboneError, match="s_aux"):
        attention.lane_attention(module, query, query, query, None, s_aux=torch.zeros(2))
