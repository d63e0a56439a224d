"""The task head that transformers' classification classes put on a base model, as plain data.

Lanes stack the steps of a recipe, each with its own weights; exports write them under the same
parameter names, so that `AutoModelForSequenceClassification` (or `...ImageClassification`) loads
them and computes the same logits. Head dropout is left out: it is the training loop's choice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.modeling_layers import GenericForSequenceClassification

from autopeft.backbone.anatomy import Anatomy

Pool = Literal["pooler", "first", "mean", "last", "all"]


@dataclass(frozen=True)
class HeadNorm:
    """A layer norm at the end of a step.

    Attributes:
        name: Parameter prefix in the task model.
        eps: Added to the variance.
        bias: Whether it has a bias beside its weight.
    """

    name: str
    eps: float
    bias: bool


@dataclass(frozen=True)
class HeadStep:
    """One linear map of a head, then its activation, then its norm.

    Attributes:
        name: Parameter prefix in the task model (`classifier.dense`).
        in_features: Width of its input.
        out_features: Width of its output.
        bias: Whether the map has a bias.
        activation: A name in transformers' `ACT2FN`, or "none".
        norm: The layer norm after the activation, or None.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "none"
    norm: HeadNorm | None = None

    @property
    def n_parameters(self) -> int:
        """Parameters of the map and its norm."""
        n_norm = 0 if self.norm is None else self.out_features * (1 + self.norm.bias)
        return self.out_features * (self.in_features + self.bias) + n_norm


@dataclass(frozen=True)
class HeadRecipe:
    """From the base model's hidden states to the task's outputs.

    Attributes:
        pool: How [rows, T, d] becomes [rows, d]: `pooler` is the base model's own pre-trained
            pooler, part of the frozen backbone; `first` the first token; `mean` the mean over
            the mask; `last` the last token of the mask; `all` keeps every token: the frozen
            language model head reads them, and nothing is trained beside the methods.
        steps: The trainable steps on the pooled rows, in order.
        native: Whether a transformers task class computes the same outputs.
    """

    pool: Pool
    steps: tuple[HeadStep, ...]
    native: bool

    @property
    def n_parameters(self) -> int:
        """Trainable parameters: what the task class adds without pre-trained weights."""
        return sum(step.n_parameters for step in self.steps)


def head_recipe(
    config: Any, anatomy: Anatomy, n_outputs: int, *, pretrained_pooler: bool = True
) -> HeadRecipe:
    """The head of the architecture's own task class; a plain linear head where it has none.

    Args:
        config: The base model's `PretrainedConfig`.
        anatomy: The base model's anatomy.
        n_outputs: Classes, or 1 for a regression.
        pretrained_pooler: Whether the checkpoint holds the pooler's weights; where it does not,
            a BERT-like pooler is new and is trained with the head.
    """
    known = _RECIPES.get(anatomy.architecture)
    if known is not None:
        recipe = known(config, anatomy.hidden_size, n_outputs)
        if recipe.pool == "pooler" and not pretrained_pooler:
            return _with_new_pooler(recipe, anatomy)
        return recipe
    if _has_generic_class(config):
        return _scored(anatomy.hidden_size, n_outputs)
    # The architecture's own task class, if any, is unknown here: T5's reads its decoder.
    classifier = HeadStep("classifier", anatomy.hidden_size, n_outputs)
    return HeadRecipe("last" if anatomy.causal else "mean", (classifier,), native=False)


def lm_recipe() -> HeadRecipe:
    """The recipe of a causal language model: hidden states of all tokens, no new weights."""
    return HeadRecipe("all", (), native=True)


def pool_rows(hidden: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    """One vector per row.

    Args:
        hidden: Hidden states of the base model, [rows, T, d].
        mask: 1 for tokens, 0 for padding, [rows, T].
        pool: `first`, `mean` or `last`. The caller applies the model's own `pooler` itself, and
            with `all` pools nothing.

    Returns:
        [rows, d].

    Raises:
        ValueError: For `pooler`, which needs the model, and `all`, which is no pooling.
    """
    if pool == "first":
        return hidden[:, 0]
    if pool == "mean":
        weights = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)
    if pool == "last":
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        last = (positions * mask.to(positions.dtype)).argmax(-1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    if pool == "all":
        raise ValueError("the hidden states of all tokens are not pooled")
    raise ValueError("the base model's own pooler is applied by the caller")


def _bert(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    return HeadRecipe("pooler", (HeadStep("classifier", d, n_outputs),), native=True)


def _with_new_pooler(recipe: HeadRecipe, anatomy: Anatomy) -> HeadRecipe:
    d = anatomy.hidden_size
    pooler = HeadStep(f"{anatomy.architecture}.pooler.dense", d, d, activation="tanh")
    return HeadRecipe("first", (pooler, *recipe.steps), native=True)


def _roberta(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    dense = HeadStep("classifier.dense", d, d, activation="tanh")
    return HeadRecipe("first", (dense, HeadStep("classifier.out_proj", d, n_outputs)), native=True)


def _electra(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    dense = HeadStep("classifier.dense", d, d, activation="gelu")
    return HeadRecipe("first", (dense, HeadStep("classifier.out_proj", d, n_outputs)), native=True)


def _distilbert(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    dense = HeadStep("pre_classifier", d, d, activation="relu")
    return HeadRecipe("first", (dense, HeadStep("classifier", d, n_outputs)), native=True)


def _deberta(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    width = config.pooler_hidden_size
    dense = HeadStep("pooler.dense", width, width, activation=config.pooler_hidden_act)
    return HeadRecipe("first", (dense, HeadStep("classifier", d, n_outputs)), native=True)


def _modernbert(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    dense = HeadStep(
        "head.dense",
        d,
        d,
        bias=config.classifier_bias,
        activation=config.classifier_activation,
        norm=HeadNorm("head.norm", config.norm_eps, config.norm_bias),
    )
    pool: Pool = "mean" if config.classifier_pooling == "mean" else "first"
    return HeadRecipe(pool, (dense, HeadStep("classifier", d, n_outputs)), native=True)


def _vit(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    return HeadRecipe("first", (HeadStep("classifier", d, n_outputs),), native=True)


def _scored(d: int, n_outputs: int) -> HeadRecipe:
    return HeadRecipe("last", (HeadStep("score", d, n_outputs, bias=False),), native=True)


def _gpt2(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    return _scored(d, n_outputs)


def _opt(config: Any, d: int, n_outputs: int) -> HeadRecipe:
    return _scored(config.word_embed_proj_dim, n_outputs)


_RECIPES: dict[str, Callable[[Any, int, int], HeadRecipe]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "electra": _electra,
    "distilbert": _distilbert,
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
    "gpt2": _gpt2,
    "opt": _opt,
    "vit": _vit,
}

POOLED = frozenset({"bert"})
"""Architectures whose task class reads the base model's pooler."""


def _has_generic_class(config: Any) -> bool:
    """Whether the task class is transformers' generic one for decoders (Llama, Qwen, Gemma...)."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return False
    task_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return issubclass(task_class, GenericForSequenceClassification)
