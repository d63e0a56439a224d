"""Tiny backbones of every architecture, batches, and random configurations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers as tf

from autopeft import counting
from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import NO_SPARSITY, Configuration, Group
from autopeft.methods import registry
from autopeft.training.batches import Batch
from tests.support import method_cases

VOCABULARY, HIDDEN, LAYERS, HEADS, INNER = 64, 32, 3, 4, 48
MOST_METHODS = 3
"""In one random configuration."""

ACTING_RULES: tuple[Mapping[str, Any], ...] = (
    {"rule": "ist", "interval": 4},
    {"rule": "id3", "budget": 0.3, "exponent": 0.5},
    {"rule": "adalora", "interval": 3, "warmup": 0.1, "final": 0.3, "target": 0.4},
    {"rule": "rst", "keep": 0.7},
    {"rule": "lisa", "interval": 5, "layers": 1},
    {"rule": "ist", "interval": 6, "beta": 0.0, "candidates": 2, "suppress": 0.4},
    {"rule": "id3_random", "budget": 0.4},
    {"rule": "adalora_random", "interval": 3, "warmup": 0.1, "final": 0.3, "target": 0.4},
)
"""Every rule that acts while a lane trains, at a pace that 20 steps show."""

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
    first: int = 0,
    methods: Sequence[str] = (),
    rules: bool = False,
) -> Configuration:
    """Groups of some methods at random layers, sites and settings.

    Args:
        backbone: What carries them.
        rng: Of all draws.
        layers: Layers of the backbone.
        first: The lowest layer that may be occupied.
        methods: One to all of these; by default one to `MOST_METHODS` of all that the backbone
            carries. Sparse weights and salient channels are chosen by chance, so that no
            importance map is needed.
        rules: Whether it gets a sparsity rule that acts while it trains. Some compare single
            scalars, which rounding in float32 may turn.
    """
    offered, most = list(methods), len(methods)
    if not methods:
        offered, most = method_cases.carried(backbone.anatomy), MOST_METHODS
    while True:
        chosen = rng.choice(offered, size=int(rng.integers(1, most + 1)), replace=False)
        groups = []
        for method in chosen:
            size = int(rng.integers(1, layers - first + 1))
            own = rng.choice(np.arange(first, layers), size=size, replace=False)
            groups.append(_random_group(str(method), [int(i) for i in own], backbone, rng))
        found = Configuration.of(
            groups,
            training={
                "learning_rate": float(10 ** rng.uniform(-4, -3)),
                "weight_decay": float(rng.choice([0.0, 0.01])),
                "warmup_ratio": float(rng.choice([0.0, 0.1])),
            },
            sparsity=_random_rule(groups, rng) if rules else NO_SPARSITY,
        )
        if not counting.faults(found, backbone.anatomy):
            return found


def _random_rule(groups: Sequence[Group], rng: np.random.Generator) -> Mapping[str, Any]:
    low_rank = [group for group in groups if group.method == "lora"]
    plain = low_rank and not any(group.get("dora") for group in low_rank)
    allowed = [rule for rule in ACTING_RULES if not rule["rule"].startswith("adalora") or plain]
    return allowed[int(rng.integers(len(allowed)))]


def _random_group(
    method: str, layers: list[int], backbone: Backbone, rng: np.random.Generator
) -> Group:
    anatomy = backbone.anatomy
    dropout = float(rng.choice([0.0, 0.1, 0.3]))
    if method == "lora":
        count = int(rng.integers(1, len(anatomy.roles) + 1))
        sites = [str(s) for s in rng.choice(anatomy.roles, size=count, replace=False)]
        rank = int(rng.integers(1, 9))
        flags = {name: bool(rng.random() < 1 / 3) for name in ("dora", "rank_stabilised")}
        return Group.of("lora", layers, sites, rank=rank, alpha=8.0, dropout=dropout, **flags)
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
    if method not in ("salient_channels", "serial_adapter", "parallel_adapter"):
        return _random_case(method, layers, backbone, rng)
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


def _random_case(
    method: str, layers: list[int], backbone: Backbone, rng: np.random.Generator
) -> Group:
    """A variant of a method, at one of its sizes, at up to three of the sites that allow it."""
    anatomy, schema = backbone.anatomy, registry[method].schema
    offered = {*anatomy.roles, *anatomy.sublayers, *anatomy.norms}
    every = [
        (given, [site for site in sites if method_cases.allowed(method, site, given, anatomy)])
        for given in method_cases.variants(method)
        for sites in [[site for site in given.get("sites", schema.sites) if site in offered]]
    ]
    every = [
        (given, sites)
        for given, sites in every
        if sites or (not schema.sites and method_cases.fits(method, anatomy, **given))
    ]
    variant, sites = every[int(rng.integers(len(every)))]
    given = method_cases.dropout(method, float(rng.choice([0.0, 0.2]))) | dict(variant)
    sizes = method_cases.sizes(method, anatomy)
    size = given.pop(schema.size, sizes[int(rng.integers(len(sizes)))])
    if sites:
        number = min(len(sites), int(rng.integers(1, 4)))
        given["sites"] = [str(each) for each in rng.choice(sites, size=number, replace=False)]
    return method_cases.configuration(method, anatomy, size, layers=layers, **given).groups[0]
