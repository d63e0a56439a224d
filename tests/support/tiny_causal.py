"""Tiny decoders with their language model heads, one for everything that a head may do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers.utils import logging as transformers_logging

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WIDE = {**SIZES, "head_dim": 16}
_OPT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 32,
}
_GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
    "llama-tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_WIDE)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SIZES, sliding_window=4)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**_WIDE)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_WIDE, sliding_window=16)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**_WIDE, sliding_window=4, final_logit_softcapping=2.0)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT2)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**_OPT, word_embed_proj_dim=32)),
    "opt-projected": lambda: tf.OPTForCausalLM(tf.OPTConfig(**_OPT, word_embed_proj_dim=16)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**SIZES)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES)),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**SIZES, logits_scaling=6.0)),
}


def tiny_causal(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random model in eval mode; biases and norms are not at their initial values either."""
    model = CAUSAL[name]()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model.eval().to(dtype)


def tiny_inputs(rows: int = 3, tokens: int = 7) -> dict[str, torch.Tensor]:
    """Random tokens, padded on the right."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    for row in range(1, rows):
        mask[row, tokens - 2 * row :] = 0
    ids = torch.randint(3, SIZES["vocab_size"], (rows, tokens), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


def save(model: Any, folder: Path) -> Path:
    """Save a model with a tokenizer of the words `w3` to `w63`; `<s>` and `</s>` are 1 and 2."""
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    transformers_logging.enable_progress_bar()
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 64)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "w3"}
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
