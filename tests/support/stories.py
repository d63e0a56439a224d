"""A real decoder of 260 thousand weights, as a Hugging Face folder: llama2.c's stories260K.

The data are not part of the project: `AUTOPEFT_BENCH_DATA` names the folder that holds
`stories260k/`, and where there is none the tests that need it are skipped.
"""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers.utils import logging as transformers_logging

HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocabulary", "length")
SPACE = "\u2581"


def source() -> Path:
    """The folder with the original files; skips the test where it is absent."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("AUTOPEFT_BENCH_DATA", default)) / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: AUTOPEFT_BENCH_DATA names the folder of the data")
    return folder


def save_stories(folder: Path) -> Path:
    """Write model and tokenizer; skips the test where the original files are absent."""
    weights, pieces = source() / "stories260K.bin", source() / "tok512.bin"
    transformers_logging.disable_progress_bar()
    _model(weights).save_pretrained(folder)
    transformers_logging.enable_progress_bar()
    _tokenizer(pieces).save_pretrained(folder)
    return folder


def _model(file: Path) -> tf.LlamaForCausalLM:
    """The file: seven int32, then float32 weights, kind by kind over all layers."""
    data = file.read_bytes()
    size = dict(zip(HEADER, struct.unpack("7i", data[:28]), strict=True))
    numbers = torch.from_numpy(np.frombuffer(data, dtype="<f4", offset=28).copy())
    d, inner, layers = size["dim"], size["hidden"], size["layers"]
    kv, vocabulary = d // size["heads"] * size["kv_heads"], abs(size["vocabulary"])
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        max_position_embeddings=size["length"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=size["vocabulary"] > 0,
        bos_token_id=1,
        eos_token_id=2,
    )
    shapes = {
        "embed_tokens": (vocabulary, d),
        "input_layernorm": (layers, d),
        "self_attn.q_proj": (layers, d, d),
        "self_attn.k_proj": (layers, kv, d),
        "self_attn.v_proj": (layers, kv, d),
        "self_attn.o_proj": (layers, d, d),
        "post_attention_layernorm": (layers, d),
        "mlp.gate_proj": (layers, inner, d),
        "mlp.down_proj": (layers, d, inner),
        "mlp.up_proj": (layers, inner, d),
        "norm": (d,),
    }
    state, start = {}, 0
    for name, shape in shapes.items():
        stop = start + int(np.prod(shape))
        tensor, start = numbers[start:stop].view(shape), stop
        if name in ("embed_tokens", "norm"):
            state[f"{name}.weight"] = tensor
            continue
        for layer, own in enumerate(tensor):
            if name.endswith(("q_proj", "k_proj")):
                own = _half_split(own, d // size["heads"])  # noqa: PLW2901
            state[f"layers.{layer}.{name}.weight"] = own.clone()
    model = tf.LlamaForCausalLM(config)
    model.model.load_state_dict(state)
    return model.eval()


def _half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of every head from interleaved rotary pairs (2i, 2i+1) to halves (i, i + half)."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _tokenizer(file: Path) -> tf.PreTrainedTokenizerFast:
    """The file: the longest piece's length, then (score, length, bytes) a piece."""
    data = file.read_bytes()
    pieces, scores, at = [], [], 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode().strip("\n") or "\n")
        scores.append(score)
        at += 8 + length
    names = [piece.replace(" ", SPACE) for piece in pieces]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            _merges(names, scores, vocabulary),
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _merges(
    names: list[str], scores: list[float], vocabulary: dict[str, int]
) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first, as sentencepiece merges."""
    found = [
        (-scores[index], index, name[:cut], name[cut:])
        for index, name in enumerate(names)
        for cut in range(1, len(name))
        if index > 258 and name[:cut] in vocabulary and name[cut:] in vocabulary
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
