"""Backbones: a folder with a saved model, or a named shape with random weights.

What a step costs does not depend on the values of frozen weights, so a bare machine needs no
checkpoint; only losses and accuracies then mean nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as tf
from torch import nn

from autopeft.backbone.files import MINILM
from autopeft.backbone.loading import Backbone, BackboneRequest, backbone_of, load_backbone
from autopeft.errors import BackboneError
from autopeft.study.metrics import CAUSAL_LM, CLASSIFICATION


@dataclass(frozen=True, eq=False)
class Subject:
    """One model as both sides see it.

    Attributes:
        name: As given.
        backbone: What autopeft trains lanes on.
        task_model: The same weights under transformers' classification or causal head.
        n_classes: Outputs of its head; 0 for a language model.
    """

    name: str
    backbone: Backbone
    task_model: nn.Module
    n_classes: int

    @property
    def device(self) -> torch.device:
        """Where both lie."""
        return next(self.backbone.model.parameters()).device

    def frozen_in(self, dtype: torch.dtype) -> "Subject":
        """The same model, its weights held in another type on both sides."""
        frozen = copy.deepcopy(self.backbone.model).to(dtype)
        task_model = copy.deepcopy(self.task_model).to(dtype)
        return replace(self, backbone=backbone_of(frozen, name=self.name), task_model=task_model)

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

    Args:
        name: See above.
        n_classes: Classes to tell apart; 0 for a causal language model.
        device: Where it goes.
        dtype: Of random weights; a folder's have their own.

    Raises:
        BackboneError: The folder holds no model, or the package of `builtin:minilm` is missing.
    """
    if name in SHAPES:
        model = _random_model(name, n_classes, device, dtype)
        backbone = backbone_of(model, name=name)
    else:
        task = CLASSIFICATION if n_classes else CAUSAL_LM
        backbone = load_backbone(BackboneRequest(name, device=device, task=task))
    return Subject(name, backbone, _task_model(backbone, n_classes), n_classes)


def default_name() -> str:
    """MiniLM with its own weights where they are installed, else its shape."""
    try:
        load_backbone(BackboneRequest(MINILM))
    except BackboneError:
        return "minilm"
    return MINILM


def _random_model(name: str, n_classes: int, device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    kind = tf.AutoModel if n_classes else tf.AutoModelForCausalLM
    with torch.device(device):
        model: nn.Module = kind.from_config(SHAPES[name](), dtype=dtype)
    return model


def _task_model(backbone: Backbone, n_classes: int) -> nn.Module:
    """transformers' task model around a copy of the backbone's weights."""
    config, own = copy.deepcopy(backbone.config), next(backbone.model.parameters())
    torch.manual_seed(0)
    with own.device:
        if n_classes:
            config.num_labels = n_classes
            kind: Any = tf.AutoModelForSequenceClassification
        else:
            kind = tf.AutoModelForCausalLM
        model: Any = kind.from_config(config, dtype=own.dtype)
    if backbone.lm_head is not None:
        model.get_output_embeddings().weight.data = backbone.lm_head.weight.clone()
    inner = getattr(model, model.base_model_prefix)
    missing, unexpected = inner.load_state_dict(backbone.model.state_dict(), strict=False)
    if missing or unexpected:
        raise BackboneError(f"{backbone.name}: its task model has other weights: {missing}")
    task_model: nn.Module = model.to(own.device)
    return task_model.train()
