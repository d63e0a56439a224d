"""Backbones: a folder with a saved model, or a named shape with random weights.

What a step costs does not depend on the values of frozen weights, so a bare machine needs no
checkpoint; only losses and accuracies then mean nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import nn

from autopeft.backbone.files import MINILM
from autopeft.backbone.loading import Backbone, BackboneRequest, backbone_of, load_backbone
from autopeft.errors import BackboneError

INITIAL_STD = 0.02


@dataclass(frozen=True, eq=False)
class Subject:
    """One model as both sides see it.

    Attributes:
        name: As given.
        backbone: What autopeft trains lanes on.
        task_model: The same weights under transformers' classification head.
        n_classes: Outputs of its head.
    """

    name: str
    backbone: Backbone
    task_model: nn.Module
    n_classes: int

    @property
    def device(self) -> torch.device:
        """Where both lie."""
        return next(self.backbone.model.parameters()).device

    def fresh_task_model(self, *, dropout: bool) -> nn.Module:
        """A copy to wrap and train; without `dropout`, every dropout module does nothing.

        transformers' attention reads its rate from an attribute of its own, so both are set.
        """
        model = copy.deepcopy(self.task_model)
        if not dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
                for name in ("dropout_prob", "attention_dropout"):
                    if isinstance(getattr(module, name, None), float):
                        setattr(module, name, 0.0)
        return model


def _bert(layers: int, hidden: int, heads: int, vocabulary: int = 30522) -> tf.PreTrainedConfig:
    return tf.BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )


def _llama(
    layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int
) -> tf.PreTrainedConfig:
    return tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


SHAPES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "minilm": lambda: _bert(6, 384, 12),
    "bert-base": lambda: _bert(12, 768, 12),
    "llama-1b": lambda: _llama(16, 2048, 8192, 32, 8, 128256),
    "tiny-bert": lambda: _bert(3, 32, 4, vocabulary=128),
    "tiny-llama": lambda: _llama(3, 32, 48, 4, 2, vocabulary=128),
}
"""Named shapes. `llama-1b` is Llama 3.2 1B's: 16 layers, hidden 2048, inner 8192."""


def load_subject(name: str, *, n_classes: int, device: str, dtype: torch.dtype) -> Subject:
    """The model called `name`: a key of `SHAPES`, `builtin:minilm`, or a folder.

    Raises:
        BackboneError: The folder holds no model, or the package of `builtin:minilm` is missing.
    """
    if name in SHAPES:
        return _random_subject(name, n_classes, device, dtype)
    backbone = load_backbone(BackboneRequest(name, device=device))
    config = copy.deepcopy(backbone.config)
    config.num_labels = n_classes
    task_model = _task_model(config, backbone.model, n_classes)
    return Subject(name, backbone, task_model.to(device), n_classes)


def default_name() -> str:
    """MiniLM with its own weights where they are installed, else its shape."""
    try:
        load_backbone(BackboneRequest(MINILM))
    except BackboneError:
        return "minilm"
    return MINILM


def _random_subject(name: str, n_classes: int, device: str, dtype: torch.dtype) -> Subject:
    config = SHAPES[name]()
    config.num_labels = n_classes
    torch.manual_seed(0)
    with torch.device(device):
        base = tf.AutoModel.from_config(config, dtype=dtype)
    task_model = _task_model(config, base, n_classes)
    return Subject(name, backbone_of(base, name=name), task_model.to(device), n_classes)


def _task_model(config: Any, base: nn.Module, n_classes: int) -> nn.Module:
    """transformers' classification model around a copy of the base model's weights."""
    torch.manual_seed(0)
    model: Any = tf.AutoModelForSequenceClassification.from_config(config)
    inner = getattr(model, model.base_model_prefix)
    missing, unexpected = inner.load_state_dict(base.state_dict(), strict=False)
    if missing or unexpected:
        raise BackboneError(f"{config.model_type}: its task model has other weights: {missing}")
    config_dtype = next(base.parameters()).dtype
    return model.to(config_dtype).train()
