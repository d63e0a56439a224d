"""Tiny backbones of every architecture, batches, and random configurations."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import transformers as tf

from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import Configuration, Group
from autopeft.training.batches import Batch

VOCABULARY, HIDDEN, LAYERS, HEADS, INNER = 64, 32, 3, 4, 48

_BERT_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": 32,
}
_LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": INNER,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _tiny_models() -> dict[str, Callable[[], torch.nn.Module]]:
    return {
        "bert": lambda: tf.BertModel(tf.BertConfig(**_BERT_LIKE)),
        "roberta": lambda: tf.RobertaModel(
            tf.RobertaConfig(**_BERT_LIKE), add_pooling_layer=False
        ),
        "distilbert": lambda: tf.DistilBertModel(
            tf.DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=HIDDEN,
                n_layers=LAYERS,
                n_heads=HEADS,
                hidden_dim=INNER,
                max_position_embeddings=32,
            )
        ),
        "electra": lambda: tf.ElectraModel(tf.ElectraConfig(**_BERT_LIKE, embedding_size=16)),
        "deberta-v2": lambda: tf.DebertaV2Model(
            tf.DebertaV2Config(
                **_BERT_LIKE,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                position_buckets=8,
                max_relative_positions=-1,
                norm_rel_ebd="layer_norm",
                share_att_key=True,
            )
        ),
        "modernbert": lambda: tf.ModernBertModel(
            tf.ModernBertConfig(
                **_BERT_LIKE,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                cls_token_id=1,
                sep_token_id=2,
                global_attn_every_n_layers=2,
                local_attention=4,
            )
        ),
        "gpt2": lambda: tf.GPT2Model(
            tf.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=HIDDEN,
                n_layer=LAYERS,
                n_head=HEADS,
                n_positions=32,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        "opt": lambda: tf.OPTModel(
            tf.OPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                ffn_dim=INNER,
                word_embed_proj_dim=HIDDEN,
                max_position_embeddings=32,
            )
        ),
        "llama": lambda: tf.LlamaModel(tf.LlamaConfig(**_LLAMA_LIKE)),
        "qwen2": lambda: tf.Qwen2Model(
            tf.Qwen2Config(**{k: v for k, v in _LLAMA_LIKE.items() if k != "head_dim"})
        ),
        "qwen3": lambda: tf.Qwen3Model(tf.Qwen3Config(**_LLAMA_LIKE)),
        "mistral": lambda: tf.MistralModel(tf.MistralConfig(**_LLAMA_LIKE, sliding_window=4)),
        "gemma": lambda: tf.GemmaModel(tf.GemmaConfig(**_LLAMA_LIKE)),
        "gemma3_text": lambda: tf.Gemma3TextModel(
            tf.Gemma3TextConfig(**_LLAMA_LIKE, sliding_window=4)
        ),
        "t5": lambda: tf.T5EncoderModel(
            tf.T5Config(
                vocab_size=VOCABULARY,
                d_model=HIDDEN,
                num_layers=LAYERS,
                num_heads=HEADS,
                d_ff=INNER,
                d_kv=8,
            )
        ),
        "vit": lambda: tf.ViTModel(
            tf.ViTConfig(
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                intermediate_size=INNER,
                image_size=16,
                patch_size=4,
            ),
            add_pooling_layer=False,
        ),
    }


ARCHITECTURES = tuple(_tiny_models())


def tiny_backbone(architecture: str, dtype: torch.dtype = torch.float64) -> Backbone:
    """A random backbone whose weights are large enough for every site to matter."""
    torch.manual_seed(0)
    model = _tiny_models()[architecture]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return backbone_of(model.to(dtype))


def tiny_batch(architecture: str, rows: int = 3, tokens: int = 7, seed: int = 1) -> Batch:
    """Rows of random tokens (with padding) or pixels, labels in 0..2."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    if architecture == "vit":
        pixels = torch.randn(rows, 3, 16, 16, generator=generator, dtype=torch.float64)
        return Batch({"pixel_values": pixels}, torch.ones(rows, 17), labels)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    for row in range(1, rows):
        mask[row, tokens - 2 * row :] = 0
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator) * mask
    return Batch({"input_ids": ids, "attention_mask": mask}, mask, labels)


def random_configuration(
    backbone: Backbone,
    rng: np.random.Generator,
    *,
    layers: int = LAYERS,
    methods: Sequence[str] = (),
) -> Configuration:
    """One to four groups of some (by default any) methods at random layers, sites and settings."""
    anatomy = backbone.anatomy
    if not methods:
        methods = ["lora", "serial_adapter", "parallel_adapter"]
        methods += ["prefix"] if anatomy.carries_prefix else []
    chosen = rng.choice(methods, size=int(rng.integers(1, len(methods) + 1)), replace=False)
    groups = []
    for method in chosen:
        own = rng.choice(layers, size=int(rng.integers(1, layers + 1)), replace=False)
        groups.append(_random_group(str(method), [int(i) for i in own], backbone, rng))
    return Configuration.of(
        groups,
        training={
            "learning_rate": float(10 ** rng.uniform(-4, -3)),
            "weight_decay": float(rng.choice([0.0, 0.01])),
            "warmup_ratio": float(rng.choice([0.0, 0.1])),
        },
    )


def _random_group(
    method: str, layers: list[int], backbone: Backbone, rng: np.random.Generator
) -> Group:
    anatomy = backbone.anatomy
    dropout = float(rng.choice([0.0, 0.1, 0.3]))
    if method == "lora":
        count = int(rng.integers(1, len(anatomy.roles) + 1))
        sites = [str(s) for s in rng.choice(anatomy.roles, size=count, replace=False)]
        rank = int(rng.integers(1, 9))
        return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=dropout)
    if method == "prefix":
        settings = {"length": int(rng.integers(1, 6)), "reparametrise": bool(rng.integers(2))}
        if settings["reparametrise"]:
            settings["hidden"] = 8
        return Group.of("prefix", layers, **settings)
    if method == "sparse":
        count = int(rng.integers(1, len(anatomy.roles) + 1))
        sites = [str(s) for s in rng.choice(anatomy.roles, size=count, replace=False)]
        granularity = str(rng.choice(["weight", "input", "output", "block"]))
        extra = {"block": {"block": 4}, "input": {"noise": 0}}.get(granularity, {})
        density = float(rng.uniform(0.02, 0.5))
        return Group.of(
            "sparse", layers, sites, density=density, granularity=granularity, score="random",
            smallest=False, **extra,
        )  # fmt: skip
    count = int(rng.integers(1, len(anatomy.sublayers) + 1))
    sites = [str(s) for s in rng.choice(anatomy.sublayers, size=count, replace=False)]
    if method == "salient_channels":
        channels = int(rng.integers(1, 9))
        return Group.of(method, layers, sites, channels=channels, score="random")
    return Group.of(
        method,
        layers,
        sites,
        size=int(rng.integers(1, 9)),
        activation=str(rng.choice(["relu", "gelu", "tanh", "silu"])),
        scale=float(rng.choice([1.0, 4.0])),
        dropout=dropout,
    )
