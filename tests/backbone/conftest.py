"""Tiny models of every supported architecture, built from their configurations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY, OUTPUTS = 32, 48, 4, 2, 64, 3
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2}
WIDE_HEADS = {"num_key_value_heads": 1, "head_dim": 16}
GATED = ("up", "gate", "down")
PLAIN = ("up", "down")


@dataclass(frozen=True)
class Architecture:
    """What a tiny model is made of, and the anatomy that it must have.

    `modules` names the module of each role in layer 0; `start` the first output row of a slice.
    """

    name: str
    config_class: str
    settings: Mapping[str, Any]
    stack: str
    modules: Mapping[str, str]
    attention: str
    start: Mapping[str, int] = field(default_factory=dict)
    query_width: int = HIDDEN
    key_width: int = HIDDEN
    inner: int = INNER
    bias: bool = True
    causal: bool = False
    transposed: bool = False
    packable: bool = True
    image: bool = False
    task_class: str = ""

    @property
    def head_dim(self) -> int:
        return self.query_width // HEADS

    def config(self) -> Any:
        settings = {**self.settings, "num_labels": OUTPUTS}
        return getattr(transformers, self.config_class)(**settings)

    def base(self) -> nn.Module:
        config = self.config()
        if config.model_type == "t5":
            return filled(transformers.T5EncoderModel(config))
        return filled(transformers.AutoModel.from_config(config))

    def task(self) -> nn.Module:
        return filled(getattr(transformers, self.task_class)(self.config()))


def filled(model: nn.Module) -> nn.Module:
    """Weights large enough for every site to matter, norms near one, biases not zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model.eval().double()


def _modules(layer: str, **names: str) -> dict[str, str]:
    return {role: f"{layer}.{name}" for role, name in names.items()}


def _bert(layer: str, query: str, key: str, value: str) -> dict[str, str]:
    return _modules(
        layer,
        query=f"attention.self.{query}",
        key=f"attention.self.{key}",
        value=f"attention.self.{value}",
        output="attention.output.dense",
        up="intermediate.dense",
        down="output.dense",
    )


def _llama(layer: str) -> dict[str, str]:
    attention = {role: f"self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")}
    ffn = {role: f"mlp.{role}_proj" for role in GATED}
    return _modules(layer, **attention, **ffn)


def _encoder(name: str, config_class: str, task_class: str, **settings: Any) -> Architecture:
    return Architecture(
        name,
        config_class,
        {**SIZES, **settings},
        "encoder.layer",
        _bert("encoder.layer.0", "query", "key", "value"),
        "encoder.layer.0.attention.self",
        task_class=task_class,
    )


def _decoder(
    name: str,
    config_class: str,
    task_class: str,
    query_width: int,
    key_width: int,
    **settings: Any,
) -> Architecture:
    return Architecture(
        name,
        config_class,
        {**SIZES, **TOKENS, **settings},
        "layers",
        _llama("layers.0"),
        "layers.0.self_attn",
        query_width=query_width,
        key_width=key_width,
        bias=False,
        causal=True,
        task_class=task_class,
    )


def _deberta(name: str, packed_keys: bool, **settings: Any) -> Architecture:
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    return Architecture(
        name,
        "DebertaV2Config",
        {**SIZES, **relative, "share_att_key": packed_keys, **settings},
        "encoder.layer",
        _bert("encoder.layer.0", "query_proj", "key_proj", "value_proj"),
        "",
        packable=False,
        task_class="DebertaV2ForSequenceClassification",
    )


def _t5(name: str, ffn: Mapping[str, str], **settings: Any) -> Architecture:
    attention = {role: f"layer.0.SelfAttention.{role[0]}" for role in ("query", "key", "value")}
    sizes = {"vocab_size": VOCABULARY, "d_model": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS}
    return Architecture(
        name,
        "T5Config",
        {**sizes, "d_ff": INNER, "d_kv": 16, **settings},
        "encoder.block",
        _modules("encoder.block.0", **attention, output="layer.0.SelfAttention.o", **ffn),
        "encoder.block.0.layer.0.SelfAttention",
        query_width=64,
        key_width=64,
        bias=False,
    )


def _modernbert(name: str, pooling: str, bias: bool) -> Architecture:
    return Architecture(
        name,
        "ModernBertConfig",
        {
            **SIZES,
            **TOKENS,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "classifier_pooling": pooling,
            "classifier_bias": bias,
            "norm_bias": bias,
            "local_attention": 4,
        },
        "layers",
        _modules(
            "layers.0",
            query="attn.Wqkv",
            key="attn.Wqkv",
            value="attn.Wqkv",
            output="attn.Wo",
            gate="mlp.Wi",
            up="mlp.Wi",
            down="mlp.Wo",
        ),
        "layers.0.attn",
        start={"key": HIDDEN, "value": 2 * HIDDEN, "up": INNER},
        bias=False,
        task_class="ModernBertForSequenceClassification",
    )


def _opt(name: str, word_width: int) -> Architecture:
    return Architecture(
        name,
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_dim": INNER,
            "word_embed_proj_dim": word_width,
            "pad_token_id": 0,
        },
        "decoder.layers",
        _modules(
            "decoder.layers.0",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            output="self_attn.out_proj",
            up="fc1",
            down="fc2",
        ),
        "decoder.layers.0.self_attn",
        causal=True,
        task_class="OPTForSequenceClassification",
    )


ARCHITECTURES = (
    _encoder("bert", "BertConfig", "BertForSequenceClassification"),
    _encoder("roberta", "RobertaConfig", "RobertaForSequenceClassification"),
    _encoder("xlm-roberta", "XLMRobertaConfig", "XLMRobertaForSequenceClassification"),
    _encoder("electra", "ElectraConfig", "ElectraForSequenceClassification", embedding_size=16),
    Architecture(
        "distilbert",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INNER,
        },
        "transformer.layer",
        _modules(
            "transformer.layer.0",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            up="ffn.lin1",
            down="ffn.lin2",
        ),
        "transformer.layer.0.attention",
        task_class="DistilBertForSequenceClassification",
    ),
    _deberta("deberta-v2", packed_keys=True),
    _deberta("deberta-v2-conv", packed_keys=False, conv_kernel_size=3, conv_act="gelu"),
    _modernbert("modernbert", "cls", bias=False),
    _modernbert("modernbert-mean", "mean", bias=True),
    Architecture(
        "gpt2",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_inner": INNER,
            **TOKENS,
        },
        "h",
        _modules(
            "h.0",
            query="attn.c_attn",
            key="attn.c_attn",
            value="attn.c_attn",
            output="attn.c_proj",
            up="mlp.c_fc",
            down="mlp.c_proj",
        ),
        "h.0.attn",
        start={"key": HIDDEN, "value": 2 * HIDDEN},
        causal=True,
        transposed=True,
        task_class="GPT2ForSequenceClassification",
    ),
    _opt("opt", HIDDEN),
    _opt("opt-projected", 16),
    _decoder("llama", "LlamaConfig", "LlamaForSequenceClassification", 32, 16, **GROUPED),
    _decoder("mistral", "MistralConfig", "MistralForSequenceClassification", 32, 16, **GROUPED),
    _decoder("qwen3", "Qwen3Config", "Qwen3ForSequenceClassification", 64, 16, **WIDE_HEADS),
    _decoder("gemma", "GemmaConfig", "GemmaForSequenceClassification", 64, 16, **WIDE_HEADS),
    _decoder(
        "gemma3", "Gemma3TextConfig", "Gemma3TextForSequenceClassification", 64, 16, **WIDE_HEADS
    ),
    Architecture(
        "qwen2",
        "Qwen2Config",
        {**SIZES, **TOKENS, **GROUPED},
        "layers",
        _llama("layers.0"),
        "layers.0.self_attn",
        key_width=16,
        causal=True,
        task_class="Qwen2ForSequenceClassification",
    ),
    Architecture(
        "phi3",
        "Phi3Config",
        {**SIZES, **TOKENS, **GROUPED},
        "layers",
        _modules(
            "layers.0",
            query="self_attn.qkv_proj",
            key="self_attn.qkv_proj",
            value="self_attn.qkv_proj",
            output="self_attn.o_proj",
            gate="mlp.gate_up_proj",
            up="mlp.gate_up_proj",
            down="mlp.down_proj",
        ),
        "layers.0.self_attn",
        start={"key": HIDDEN, "value": HIDDEN + 16, "up": INNER},
        key_width=16,
        bias=False,
        causal=True,
        task_class="Phi3ForSequenceClassification",
    ),
    Architecture(
        "vit",
        "ViTConfig",
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": INNER,
            "image_size": 16,
            "patch_size": 8,
        },
        "layers",
        _modules(
            "layers.0",
            query="attention.q_proj",
            key="attention.k_proj",
            value="attention.v_proj",
            output="attention.o_proj",
            up="mlp.fc1",
            down="mlp.fc2",
        ),
        "layers.0.attention",
        image=True,
        task_class="ViTForImageClassification",
    ),
    _t5("t5", {"up": "layer.1.DenseReluDense.wi", "down": "layer.1.DenseReluDense.wo"}),
    _t5(
        "t5-gated",
        {
            "gate": "layer.1.DenseReluDense.wi_0",
            "up": "layer.1.DenseReluDense.wi_1",
            "down": "layer.1.DenseReluDense.wo",
        },
        feed_forward_proj="gated-gelu",
    ),
)


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


@pytest.fixture(
    params=[architecture for architecture in ARCHITECTURES if architecture.task_class],
    ids=lambda architecture: architecture.name,
)
def with_task(request: pytest.FixtureRequest) -> Architecture:
    """An architecture whose recipe follows transformers' own task class."""
    return request.param


@pytest.fixture(scope="session")
def by_name() -> dict[str, Architecture]:
    return {architecture.name: architecture for architecture in ARCHITECTURES}


@pytest.fixture(scope="session")
def batch_for() -> Callable[[Architecture], dict[str, Tensor]]:
    """Gives a batch: 3 rows of different lengths, padded with token 0 on the right."""

    def batch(architecture: Architecture) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(7)
        if architecture.image:
            return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator).double()}
        mask = torch.ones(3, 6, dtype=torch.long)
        mask[1, 4:] = 0
        mask[2, 2:] = 0
        padding = architecture.config().pad_token_id
        ids = torch.randint(3, VOCABULARY, (3, 6), generator=generator)
        return {"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask}

    return batch


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Tiny configurations make transformers talk; each test gives its loudness back."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)
