"""Loads a backbone: a frozen base model with its tokenizer, anatomy and fingerprint.

Weights come from safetensors files unless the user allows pickles, code from a repository never
runs, and weights that a checkpoint lacks are an error, not random numbers.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
)
from transformers.utils import logging as transformers_logging

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.discovery import discover
from autopeft.backbone.files import (
    CONFIG_PATTERNS,
    MODEL_PATTERNS,
    PICKLE_PATTERNS,
    PICKLED,
    TOKENIZER_PATTERNS,
    model_folder,
    safetensors_files,
    unreadable,
)
from autopeft.backbone.fingerprint import fingerprint_of_files, fingerprint_of_model
from autopeft.backbone.heads import POOLED, HeadRecipe, head_recipe
from autopeft.backbone.tokenizer import load_tokenizer
from autopeft.errors import BackboneError, Fault

DTYPES: Mapping[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
TASKS = ("sequence-classification", "regression")
_ATTENTION_IMPLEMENTATIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class BackboneRequest:
    """What the user asks for: the `model` block of a study, and a device.

    Attributes:
        name_or_path: A local folder, a hub id, or `builtin:minilm`.
        revision: A branch, tag or commit of the hub's, or None.
        dtype: `auto` (the checkpoint's own, float32 where that is float16), `float32` or
            `bfloat16`.
        attn_implementation: `auto` or one of transformers' names (`eager`, `sdpa`, ...).
        sites: Regular expressions by role, for architectures that are not recognised.
        task: One of `TASKS`.
        device: A torch device.
        allow_pickle: Whether weights may be read from `.bin` files, which can run code.
    """

    name_or_path: str
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "auto"
    sites: Mapping[str, str] | None = None
    task: str = "sequence-classification"
    device: str = "cpu"
    allow_pickle: bool = False


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen pre-trained model and what is known of it.

    Attributes:
        model: The base model: eval mode, no gradients, no cache, on its device.
        tokenizer: Pads on the right; None for images.
        config: The model's `PretrainedConfig`.
        anatomy: Its layers and sites.
        fingerprint: SHA-256 of its weights, hexadecimal.
        name: As the user gave it.
        pretrained_pooler: Whether the model has a pooler with weights from the checkpoint.
    """

    model: nn.Module
    tokenizer: Any
    config: Any
    anatomy: Anatomy
    fingerprint: str
    name: str
    pretrained_pooler: bool = False

    def head(self, n_outputs: int) -> HeadRecipe:
        """The task head for this backbone."""
        return head_recipe(
            self.config, self.anatomy, n_outputs, pretrained_pooler=self.pretrained_pooler
        )


def load_backbone(request: BackboneRequest) -> Backbone:
    """The backbone that was asked for.

    Raises:
        BackboneError: It cannot be found, reached, read or understood.
    """
    _check(request)
    device = _device(request.device)
    folder = model_folder(request.name_or_path, request.revision, MODEL_PATTERNS)
    files = safetensors_files(folder)
    fingerprint = fingerprint_of_files(files)
    with _quiet_transformers():
        weights = folder if files else _pickle_folder(request)
        model, pretrained_pooler = _model(request, weights, safe=bool(files))
        reads_text = model.main_input_name == "input_ids"
        tokenizer = load_tokenizer(request.name_or_path, folder) if reads_text else None
    config: Any = model.config
    if tokenizer is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return Backbone(
        model=_frozen(model).to(device),
        tokenizer=tokenizer,
        config=config,
        anatomy=discover(model, config, sites=request.sites),
        fingerprint=fingerprint if files else fingerprint_of_model(model),
        name=request.name_or_path,
        pretrained_pooler=pretrained_pooler,
    )


def backbone_of(
    model: nn.Module,
    *,
    tokenizer: Any = None,
    name: str = "",
    sites: Mapping[str, str] | None = None,
) -> Backbone:
    """A backbone around a base model that is already in memory; freezes it in place.

    Its pooler, where it has one, counts as pre-trained.

    Raises:
        BackboneError: Its layers and sites are not understood.
    """
    config: Any = model.config
    return Backbone(
        model=_frozen(model),
        tokenizer=tokenizer,
        config=config,
        anatomy=discover(model, config, sites=sites),
        fingerprint=fingerprint_of_model(model),
        name=name or str(config.model_type),
        pretrained_pooler=getattr(model, "pooler", None) is not None,
    )


def config_anatomy(request: BackboneRequest) -> Anatomy:
    """The anatomy from the configuration alone: reads `config.json`, no weights.

    Raises:
        BackboneError: The configuration cannot be found or reached, or is not understood.
    """
    _check(request)
    folder = model_folder(request.name_or_path, request.revision, CONFIG_PATTERNS)
    with _quiet_transformers(), torch.device("meta"):
        config = _config(request, folder)
        model = _model_class(config, request)(config, **_pooler_option(config, request))
    return discover(model, config, sites=request.sites)


def config_tokenizer(request: BackboneRequest) -> Any:
    """The tokenizer alone; no weights are read."""
    folder = model_folder(request.name_or_path, request.revision, TOKENIZER_PATTERNS)
    with _quiet_transformers():
        return load_tokenizer(request.name_or_path, folder)


def config_head(request: BackboneRequest, anatomy: Anatomy, n_outputs: int) -> HeadRecipe:
    """The task head, from the configuration and the names of the weights that are at hand.

    A pooler counts as pre-trained unless weights lie in the folder and it is not among them.
    """
    folder = model_folder(request.name_or_path, request.revision, CONFIG_PATTERNS)
    names = {name for file in safetensors_files(folder) for name in _weight_names(file)}
    pooler = not names or any("pooler.dense.weight" in name for name in names)
    config = _config(request, folder)
    return head_recipe(config, anatomy, n_outputs, pretrained_pooler=pooler)


def _weight_names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _check(request: BackboneRequest) -> None:
    faults = []
    if request.dtype not in DTYPES:
        faults.append(Fault("model", "dtype", request.dtype, ", ".join(DTYPES)))
    if request.attn_implementation not in _ATTENTION_IMPLEMENTATIONS:
        allowed = ", ".join(_ATTENTION_IMPLEMENTATIONS)
        faults.append(Fault("model", "attn_implementation", request.attn_implementation, allowed))
    if request.task not in TASKS:
        faults.append(Fault("model", "task", request.task, ", ".join(TASKS)))
    if not request.name_or_path:
        faults.append(Fault("model", "name_or_path", "nothing", "a folder, a hub id or a builtin"))
    if faults:
        raise BackboneError(faults)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackboneError(Fault("execution", "devices", name, "cpu, cuda or mps")) from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        allowed = ", ".join(kind for kind, there in present.items() if there)
        raise BackboneError(Fault("execution", "devices", name, allowed))
    return device


def _config(request: BackboneRequest, folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(
            request.name_or_path, error, "a model that the installed transformers knows"
        ) from error


def _model_class(config: Any, request: BackboneRequest) -> Any:
    """The base model's class; of an encoder-decoder, the encoder's."""
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)]
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING:
        given = (
            f"{request.name_or_path}, whose architecture {config.model_type!r} has no base model"
        )
        allowed = "encoders, decoders, and encoder-decoders with an encoder class, such as T5"
        raise BackboneError(Fault("model", "name_or_path", given, allowed))
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _pooler_option(config: Any, request: BackboneRequest) -> dict[str, bool]:
    """Leaves out a pooling layer that the task class does not have (RoBERTa, ViT)."""
    parameters = inspect.signature(_model_class(config, request).__init__).parameters
    if "add_pooling_layer" not in parameters:
        return {}
    return {"add_pooling_layer": config.model_type in POOLED}


def _model(request: BackboneRequest, folder: Path, *, safe: bool) -> tuple[nn.Module, bool]:
    """The base model, and whether it has a pre-trained pooler."""
    config = _config(request, folder)
    attention = request.attn_implementation
    options: dict[str, Any] = {**_pooler_option(config, request)}
    if attention != "auto":
        options["attn_implementation"] = attention
    try:
        model, info = _model_class(config, request).from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[request.dtype],
            use_safetensors=safe,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise unreadable(request.name_or_path, error, "a complete checkpoint") from error
    if request.dtype == "auto" and model.dtype == torch.float16:
        model = model.float()  # float16 has too small a range to train without loss scaling
    missing = sorted(info["missing_keys"])
    if options.get("add_pooling_layer") and missing == [
        "pooler.dense.bias",
        "pooler.dense.weight",
    ]:
        model.pooler = None  # the head trains it then, see `head_recipe`
    elif missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        given = f"{request.name_or_path}, which lacks {len(missing)} weights ({shown})"
        raise BackboneError(Fault("model", "name_or_path", given, "a complete checkpoint"))
    return model, getattr(model, "pooler", None) is not None


def _pickle_folder(request: BackboneRequest) -> Path:
    """The folder of a model that has no safetensors file, where the user allows its pickles."""
    name = request.name_or_path
    if not request.allow_pickle:
        hint = (
            "convert it with transformers' `save_pretrained`, or set model.allow_pickle: true if "
            "you trust where it comes from"
        )
        given = f"{name}, which has no safetensors weights"
        raise BackboneError(Fault("model", "name_or_path", given, "safetensors files", hint))
    folder = model_folder(name, request.revision, (*MODEL_PATTERNS, *PICKLE_PATTERNS))
    if not any((folder / file).is_file() for file in PICKLED):
        given = f"{name}, which has no weights"
        raise BackboneError(Fault("model", "name_or_path", given, "safetensors or .bin files"))
    return folder


def _frozen(model: nn.Module) -> Any:
    """The model in eval mode, without gradients and without a cache."""
    config: Any = model.config
    config.use_cache = False
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
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
