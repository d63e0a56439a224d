"""Closed-form bytes against those of the loaded tensors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
import torch
import transformers
from torch import Tensor, nn

from autopeft.backbone.loading import Backbone, BackboneRequest, load_backbone
from autopeft.backbone.memory import backbone_bytes
from autopeft.backbone.quantization import packed_bytes


def real_bytes(backbone: Backbone) -> int:
    """All storages that the loaded model holds, each once."""
    head = backbone.lm_head
    tensors = [*_tensors(backbone.model), *([head.weight, head.bias] if head else [])]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(model: nn.Module) -> Iterator[Tensor | None]:
    yield from model.buffers()
    for weight in model.parameters():
        packed: Any = weight
        yield weight
        yield getattr(packed, "SCB", None)
        state = getattr(packed, "quant_state", None)
        if state is not None:
            nested = state.state2
            yield from (state.absmax, state.code, state.offset, nested.absmax, nested.code)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "opt-projected", "phi"])
def test_bytes_are_those_of_the_loaded_tensors(
    name: str, task: str, kind: str, dtype: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny.save(tiny.tiny_causal(name, torch.float32), tmp_path / name)
    request = BackboneRequest(str(folder), task=task, dtype=dtype, quantization=kind)
    backbone = load_backbone(request)
    assert backbone_bytes(request) == backbone_bytes(backbone) == real_bytes(backbone)


def test_what_is_loaded_tells_how_large_it_would_be_otherwise(tmp_path: Path) -> None:
    folder = str(tiny.save(tiny.tiny_causal("llama", torch.float32), tmp_path / "llama"))
    request = BackboneRequest(folder, task="causal-lm")
    backbone = load_backbone(request)
    for dtype in (torch.float32, torch.bfloat16):
        for kind in ("none", "int8", "nf4"):
            there = backbone_bytes(backbone, dtype=dtype, quantization=kind)
            assert there == backbone_bytes(request, dtype=dtype, quantization=kind)
    assert backbone_bytes(request) == backbone_bytes(request, dtype=torch.float32)


def test_an_8b_decoder_in_nf4_takes_under_6_gb(tmp_path: Path) -> None:
    """Llama-3-8B: 0.5 byte and a little over for each of the 6.98e9 weights of its layers."""
    transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    ).save_pretrained(tmp_path)
    request = BackboneRequest(str(tmp_path), task="causal-lm")
    in_layers = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    outside = 2 * 128256 * 4096 + 65 * 4096
    plain = backbone_bytes(request)
    assert plain == pytest.approx(2 * (in_layers + outside), rel=1e-6)
    packed = backbone_bytes(request, quantization="nf4")
    assert packed == pytest.approx(
        in_layers * (0.5 + 1 / 64 + 4 / 64 / 256) + 2 * outside, rel=1e-4
    )
    assert packed < 6e9


def test_bytes_of_one_map() -> None:
    assert packed_bytes("int8", 64, 32) == 64 * 32 + 32 * 4
    assert packed_bytes("nf4", 128, 256) == 16384 + 512 + 2 * 4 + 4 * 273
