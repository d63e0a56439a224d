"""What a configuration alone tells of a model: its class, built empty, and its anatomy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from autopeft.backbone import quantization
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.classes import base_class, causal_class, no_decoder, pooler_option
from autopeft.backbone.discovery import discover
from autopeft.backbone.files import (
    CONFIG_PATTERNS,
    TOKENIZER_PATTERNS,
    model_folder,
    safetensors_files,
    unreadable,
)
from autopeft.backbone.heads import HeadRecipe, head_recipe, lm_recipe
from autopeft.backbone.request import BackboneRequest, check_request
from autopeft.backbone.tokenizer import load_tokenizer
from autopeft.study.metrics import CAUSAL_LM


@dataclass(frozen=True)
class Skeleton:
    """What the configuration alone tells.

    Attributes:
        config: The model's `PretrainedConfig`.
        model: The model that would be loaded, on the meta device.
        anatomy: Of its base model.
    """

    config: Any
    model: nn.Module
    anatomy: Anatomy


def config_anatomy(request: BackboneRequest) -> Anatomy:
    """The anatomy from the configuration alone: reads `config.json`, no weights.

    Raises:
        BackboneError: The configuration cannot be found or reached, is not understood, or does
            not fit the task or the quantisation.
    """
    return skeleton(request).anatomy


def skeleton(request: BackboneRequest) -> Skeleton:
    """The model on the meta device, with its anatomy; reads `config.json`, no weights.

    Raises:
        BackboneError: As `config_anatomy`.
    """
    check_request(request)
    folder = model_folder(request.name_or_path, request.revision, CONFIG_PATTERNS)
    with quiet_transformers():
        return skeleton_of(request, read_config(request, folder))


def skeleton_of(request: BackboneRequest, config: Any) -> Skeleton:
    """The same of a configuration that has been read."""
    kind = model_class(config, request)
    with torch.device("meta"):
        model = kind(config, **pooler_option(kind, config))
    base = model.base_model if request.task == CAUSAL_LM else model
    anatomy = discover(base, config, sites=request.sites)
    if request.task == CAUSAL_LM and not anatomy.causal:
        raise no_decoder(anatomy.architecture, request.name_or_path)
    quantization.check_model(request.quantization, config, anatomy)
    return Skeleton(config, model, anatomy)


def config_tokenizer(request: BackboneRequest) -> Any:
    """The tokenizer alone; no weights are read."""
    folder = model_folder(request.name_or_path, request.revision, TOKENIZER_PATTERNS)
    with quiet_transformers():
        return load_tokenizer(request.name_or_path, folder)


def config_recipe(request: BackboneRequest, found: Skeleton, n_outputs: int) -> HeadRecipe:
    """What is trained on top, from the configuration and the names of the weights at hand.

    A pooler counts as pre-trained unless weights lie in the folder and it is not among them.
    """
    if request.task == CAUSAL_LM:
        return lm_recipe()
    folder = model_folder(request.name_or_path, request.revision, CONFIG_PATTERNS)
    names = {name for file in safetensors_files(folder) for name in _weight_names(file)}
    pooler = not names or any("pooler.dense.weight" in name for name in names)
    return head_recipe(found.config, found.anatomy, n_outputs, pretrained_pooler=pooler)


def _weight_names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def read_config(request: BackboneRequest, folder: Path) -> Any:
    """The `PretrainedConfig` in a folder; BackboneError where transformers does not know it."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(
            request.name_or_path, error, "a model that the installed transformers knows"
        ) from error


def model_class(config: Any, request: BackboneRequest) -> Any:
    """The class whose weights are read: for `causal-lm`, the one with the head."""
    find = causal_class if request.task == CAUSAL_LM else base_class
    return find(config, request.name_or_path)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Holds back transformers' progress bars and load reports; what matters in them is raised."""
    verbosity = transformers_logging.get_verbosity()
    shows_progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_progress:
            transformers_logging.enable_progress_bar()
