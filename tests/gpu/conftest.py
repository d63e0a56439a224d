"""Tests that need a CUDA device; without one, all of them are skipped with that reason."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_backbones as tiny
import tiny_causal
import torch

from autopeft.backbone.loading import Backbone, backbone_of


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def on_gpu(gpu: torch.device) -> Callable[..., Backbone]:
    """A tiny backbone there, by name: an architecture, or `causal-` and a decoder's."""

    def make(name: str, dtype: torch.dtype = torch.float64) -> Backbone:
        if name.startswith("causal-"):
            decoder = tiny_causal.tiny_causal(name.removeprefix("causal-"), dtype)
            found = backbone_of(decoder.to(gpu))
        else:
            found = tiny.tiny_backbone(name, dtype)
            found.model.to(gpu)
        tokenizer: Any = SimpleNamespace(pad_token_id=0)
        return replace(found, tokenizer=tokenizer)

    return make
