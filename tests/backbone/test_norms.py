"""Which norms a layer has, and that they are understood: scale and shift apart."""

import pytest
import tiny_backbones as tiny
import torch

TWO = ("attention_norm", "ffn_norm")
EXPECTED = dict.fromkeys(tiny.ARCHITECTURES, TWO) | {
    "modernbert": ("ffn_norm",),  # its first layer has no norm before attention
    "gemma3_text": ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm"),
}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_a_norm_does_beside_scale_and_shift(architecture: str) -> None:
    backbone = tiny.tiny_backbone(architecture)
    anatomy = backbone.anatomy
    assert anatomy.norms == EXPECTED[architecture]
    assert set(anatomy.norms) <= anatomy.shape(frozenset()).roles
    x = torch.randn(2, 5, anatomy.hidden_size, dtype=torch.float64) * 3.0 + 0.5
    for layer in anatomy.layers:
        for role, norm in layer.norms.items():
            module = backbone.model.get_submodule(norm.module)
            torch.nn.init.normal_(module.weight)
            y, bias = module(x).detach(), getattr(module, "bias", None)
            y = y if bias is None else y - bias
            found = backbone.frozen_norm(layer.index, role).normalised(x)
            scale = y[0, 0] / found[0, 0]
            assert torch.allclose(y, found * scale, rtol=1e-5, atol=1e-6), norm.module


def test_norms_follow_their_sublayers() -> None:
    names = {
        "bert": ("attention.output.LayerNorm", "output.LayerNorm"),
        "llama": ("input_layernorm", "post_attention_layernorm"),
        "gpt2": ("ln_1", "ln_2"),
        "vit": ("layernorm_before", "layernorm_after"),
    }
    for architecture, ends in names.items():
        layer = tiny.tiny_backbone(architecture).anatomy.layers[1]
        for role, end in zip(TWO, ends, strict=True):
            assert layer.norms[role].module == f"{layer.module}.{end}"
