"""Backbones with random weights, made where they will lie; quantised ones map by map."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.quantizers.auto import AutoHfQuantizer

from autopeft.backbone import quantization
from autopeft.backbone.discovery import discover
from autopeft.backbone.loading import Backbone, backbone_of
from benchmarks.memory.cases import Case


def _bert(hidden: int, layers: int, inner: int) -> tf.PreTrainedConfig:
    return tf.BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=inner,
    )


def _llama(
    hidden: int, layers: int, inner: int, heads: int, kv_heads: int, vocabulary: int
) -> tf.PreTrainedConfig:
    return tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        pad_token_id=0,
    )


CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "minilm": lambda: _bert(384, 6, 1536),
    "bert-base": lambda: _bert(768, 12, 3072),
    "gpt2": lambda: tf.GPT2Config(vocab_size=1000, pad_token_id=0),
    "t5-small": lambda: tf.T5Config(vocab_size=1000, pad_token_id=0),
    "llama": lambda: _llama(768, 12, 2048, 12, 4, vocabulary=1000),
    "llama-1b": lambda: _llama(2048, 16, 8192, 32, 8, vocabulary=128256),
    "llama-8b": lambda: _llama(4096, 32, 14336, 32, 8, vocabulary=128256),
}
"""`llama-1b` and `llama-8b` are the shapes of Llama 3.2 1B and 3.1 8B."""


def random_backbone(case: Case) -> Backbone:
    """The backbone of a case, on its device."""
    torch.manual_seed(0)
    config, dtype = CONFIGS[case.backbone](), getattr(torch, case.held)
    device = torch.device(case.device)
    if case.quantization == quantization.NONE:
        with device:
            model: nn.Module = (
                tf.T5EncoderModel(config).to(dtype)
                if isinstance(config, tf.T5Config)
                else tf.AutoModel.from_config(config, dtype=dtype)
            )
    else:
        model = _quantised_llama(config, case.quantization, dtype, device)
    backbone = backbone_of(model, tokenizer=SimpleNamespace(pad_token_id=0))
    return replace(backbone, quantization=case.quantization)


def _quantised_llama(
    config: Any, kind: str, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """As `from_pretrained` makes it of a checkpoint, of which one tensor is there at a time."""
    with torch.device("meta"):
        model = tf.AutoModel.from_config(config, dtype=dtype)
    options = quantization.load_options(kind, model, discover(model, config), dtype, device)
    quantizer = AutoHfQuantizer.from_config(options["quantization_config"])
    quantizer.preprocess_model(model, device_map=options["device_map"])
    quantise = quantizer.get_quantize_ops()
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        scale = config.initializer_range if parameter.ndim > 1 else 0.0
        value = torch.randn(parameter.shape, dtype=dtype, device=device).mul_(scale)
        value = value if parameter.ndim > 1 else value.add_(1.0)  # of a norm
        own: nn.Parameter = nn.Parameter(value, requires_grad=False)
        if quantizer.param_needs_quantization(model, name):
            own = quantise.convert({name: [value]}, full_layer_name=name, model=model)[name]
        setattr(model.get_submodule(owner), leaf, own)
    with device:
        model.rotary_emb = LlamaRotaryEmbedding(config)
    quantization.prepare(model, kind)
    return model
