"""Loads a backbone: a frozen base model with its tokenizer, anatomy and fingerprint.

Weights come from safetensors files unless the user allows pickles, code from a repository never
runs, and weights that a checkpoint lacks are an error, not random numbers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.utils import logging as transformers_logging

from autopeft.backbone import quantization
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.classes import (
    base_class,
    causal_class,
    lacking,
    no_decoder,
    pooler_option,
)
from autopeft.backbone.discovery import discover
from autopeft.backbone.files import (
    CONFIG_PATTERNS,
    MODEL_PATTERNS,
    PICKLE_PATTERNS,
    PICKLED,
    model_folder,
    safetensors_files,
    unreadable,
)
from autopeft.backbone.fingerprint import (
    fingerprint_of_files,
    fingerprint_of_model,
    quantised_fingerprint,
)
from autopeft.backbone.heads import HeadRecipe, head_recipe, lm_recipe
from autopeft.backbone.lm_head import LmHead, lm_head_of
from autopeft.backbone.tokenizer import load_tokenizer
from autopeft.errors import BackboneError, Fault
from autopeft.study.metrics import CAUSAL_LM, CLASSIFICATION, REGRESSION

DTYPES: Mapping[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
TASKS = (CLASSIFICATION, REGRESSION, CAUSAL_LM)
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
        quantization: `none`, `int8` or `nf4`; see `autopeft.backbone.quantization`.
    """

    name_or_path: str
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "auto"
    sites: Mapping[str, str] | None = None
    task: str = "sequence-classification"
    device: str = "cpu"
    allow_pickle: bool = False
    quantization: str = quantization.NONE


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen pre-trained model and what is known of it.

    Attributes:
        model: The base model: eval mode, no gradients, no cache, on its device.
        tokenizer: Pads on the right; None for images.
        config: The model's `PretrainedConfig`.
        anatomy: Its layers and sites.
        fingerprint: SHA-256 of its weights, and of how they are quantised, hexadecimal.
        name: As the user gave it.
        pretrained_pooler: Whether the model has a pooler with weights from the checkpoint.
        lm_head: From hidden states to logits, for `causal-lm`; else None.
        quantization: How the weights of the layers' linear maps are kept.
    """

    model: nn.Module
    tokenizer: Any
    config: Any
    anatomy: Anatomy
    fingerprint: str
    name: str
    pretrained_pooler: bool = False
    lm_head: LmHead | None = None
    quantization: str = quantization.NONE

    def recipe(self, n_outputs: int) -> HeadRecipe:
        """What is trained on top: nothing beside a language model head, else the task head."""
        return self.head(n_outputs) if self.lm_head is None else lm_recipe()

    def head(self, n_outputs: int) -> HeadRecipe:
        """The task head for this backbone."""
        return head_recipe(
            self.config, self.anatomy, n_outputs, pretrained_pooler=self.pretrained_pooler
        )


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


def load_backbone(request: BackboneRequest) -> Backbone:
    """The backbone that was asked for.

    Raises:
        BackboneError: It cannot be found, reached, read or understood, or not be quantised.
    """
    _check(request)
    device = _device(request.device)
    folder = model_folder(request.name_or_path, request.revision, MODEL_PATTERNS)
    files = safetensors_files(folder)
    fingerprint = fingerprint_of_files(files)
    with _quiet_transformers():
        weights = folder if files else _pickle_folder(request)
        model, pretrained_pooler = _model(request, weights, device, safe=bool(files))
        reads_text = model.main_input_name == "input_ids"
        tokenizer = load_tokenizer(request.name_or_path, folder) if reads_text else None
    if tokenizer is not None and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if not files:
        fingerprint = fingerprint_of_model(model)
    return replace(
        _around(_frozen(model), request.sites),
        tokenizer=tokenizer,
        fingerprint=quantised_fingerprint(fingerprint, request.quantization),
        name=request.name_or_path,
        pretrained_pooler=pretrained_pooler,
        quantization=request.quantization,
    )


def backbone_of(
    model: nn.Module,
    *,
    tokenizer: Any = None,
    name: str = "",
    sites: Mapping[str, str] | None = None,
) -> Backbone:
    """A backbone around a model that is already in memory; freezes it in place.

    Its pooler, where it has one, counts as pre-trained.

    Args:
        model: A base model, or a decoder's `...ForCausalLM`, which gives its head too.
        tokenizer: Its tokenizer.
        name: What it is called; its architecture by default.
        sites: Regular expressions by role, for architectures that are not recognised.

    Raises:
        BackboneError: Its layers, its sites or its language model head are not understood.
    """
    backbone = _around(_frozen(model), sites)
    return replace(
        backbone,
        tokenizer=tokenizer,
        fingerprint=fingerprint_of_model(model),
        name=name or backbone.name,
    )


def _around(model: Any, sites: Mapping[str, str] | None) -> Backbone:
    """What a frozen base or causal model tells of itself; its fingerprint is left open."""
    config = model.config
    causal = _is_causal_class(model)
    base = model.base_model if causal else model
    anatomy = discover(base, config, sites=sites)
    if causal and not anatomy.causal:
        raise no_decoder(anatomy.architecture, str(config.model_type))
    return Backbone(
        model=base,
        tokenizer=None,
        config=config,
        anatomy=anatomy,
        fingerprint="",
        name=str(config.model_type),
        pretrained_pooler=getattr(base, "pooler", None) is not None,
        lm_head=lm_head_of(model) if causal else None,
    )


def _is_causal_class(model: Any) -> bool:
    return isinstance(model, MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), ()))


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
    _check(request)
    folder = model_folder(request.name_or_path, request.revision, CONFIG_PATTERNS)
    with _quiet_transformers():
        return _skeleton(request, _config(request, folder))


def _skeleton(request: BackboneRequest, config: Any) -> Skeleton:
    kind = _class(config, request)
    with torch.device("meta"):
        model = kind(config, **pooler_option(kind, config))
    base = model.base_model if request.task == CAUSAL_LM else model
    anatomy = discover(base, config, sites=request.sites)
    if request.task == CAUSAL_LM and not anatomy.causal:
        raise no_decoder(anatomy.architecture, request.name_or_path)
    quantization.check_model(request.quantization, config, anatomy)
    return Skeleton(config, model, anatomy)


def activation_dtype(dtype: str, config: Any) -> torch.dtype:
    """What `auto` stands for by the configuration: float32 where it says float16 or nothing."""
    asked = DTYPES[dtype]
    if isinstance(asked, torch.dtype):
        return asked
    declared = getattr(config, "dtype", None)
    return declared if declared in (torch.bfloat16, torch.float64) else torch.float32


def _check(request: BackboneRequest) -> None:
    faults = []
    if request.dtype not in DTYPES:
        faults.append(Fault("model", "dtype", request.dtype, ", ".join(DTYPES)))
    if request.attn_implementation not in _ATTENTION_IMPLEMENTATIONS:
        allowed = ", ".join(_ATTENTION_IMPLEMENTATIONS)
        faults.append(Fault("model", "attn_implementation", request.attn_implementation, allowed))
    if request.task not in TASKS:
        faults.append(Fault("model", "task", request.task, ", ".join(TASKS)))
    faults += quantization.request_faults(request.quantization)
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


def _class(config: Any, request: BackboneRequest) -> Any:
    """The class whose weights are read: for `causal-lm`, the one with the head."""
    find = causal_class if request.task == CAUSAL_LM else base_class
    return find(config, request.name_or_path)


def _model(
    request: BackboneRequest, folder: Path, device: torch.device, *, safe: bool
) -> tuple[Any, bool]:
    """The model on its device, and whether it has a pre-trained pooler."""
    config = _config(request, folder)
    model_class = _class(config, request)
    options = _options(request, config, model_class, device)
    try:
        model, info = model_class.from_pretrained(
            folder, config=config, use_safetensors=safe, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise unreadable(request.name_or_path, error, "a complete checkpoint") from error
    missing = sorted(info["missing_keys"])
    if options.get("add_pooling_layer") and missing == [
        "pooler.dense.bias",
        "pooler.dense.weight",
    ]:
        model.pooler = None  # the head trains it then, see `head_recipe`
    elif missing:
        raise lacking(missing, request.name_or_path)
    if request.quantization != quantization.NONE:
        quantization.prepare(model, request.quantization)
    else:
        if request.dtype == "auto" and model.dtype == torch.float16:
            model = model.float()  # float16 has too small a range to train without loss scaling
        model = model.to(device)
    return model, getattr(model, "pooler", None) is not None


def _options(
    request: BackboneRequest, config: Any, model_class: Any, device: torch.device
) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    options: dict[str, Any] = {
        **pooler_option(model_class, config),
        "dtype": DTYPES[request.dtype],
    }
    if request.attn_implementation != "auto":
        options["attn_implementation"] = request.attn_implementation
    bones = _skeleton(request, config)
    if request.quantization != quantization.NONE:
        quantization.check_device(request.quantization, device)
        dtype = activation_dtype(request.dtype, config)
        options |= quantization.load_options(
            request.quantization, bones.model, bones.anatomy, dtype, device
        )
    return options


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
