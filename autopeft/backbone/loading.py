"""Loads a backbone: a frozen base model with its tokenizer, anatomy and fingerprint.

Weights come from safetensors files unless the user allows pickles, code from a repository never
runs, and weights that a checkpoint lacks are an error, not random numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from autopeft.backbone import quantization
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.classes import lacking, no_decoder, pooler_option
from autopeft.backbone.discovery import discover
from autopeft.backbone.files import (
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
from autopeft.backbone.frozen_maps import Decompositions, FrozenMap
from autopeft.backbone.handed_on import HandedOn, find_handed_on
from autopeft.backbone.heads import HeadRecipe, head_recipe, lm_recipe
from autopeft.backbone.lm_head import LmHead, lm_head_of
from autopeft.backbone.norms import FrozenNorm
from autopeft.backbone.request import (
    DTYPES,
    BackboneRequest,
    activation_dtype,
    check_request,
    torch_device,
)
from autopeft.backbone.skeleton import (
    config_anatomy,
    model_class,
    quiet_transformers,
    read_config,
    skeleton_of,
)
from autopeft.backbone.token_states import random_tokens
from autopeft.backbone.tokenizer import load_tokenizer
from autopeft.errors import BackboneError, Fault

__all__ = ["Backbone", "BackboneRequest", "backbone_of", "config_anatomy", "load_backbone"]


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
        decompositions: Of its weights, as far as somebody needed them.
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
    decompositions: Decompositions = field(default_factory=Decompositions, repr=False)

    @cached_property
    def handed_on(self) -> HandedOn:
        """What layers return behind hidden states; the model is run when this is first read."""
        return find_handed_on(self.model, self.anatomy)

    def frozen_map(self, layer: int, role: str) -> FrozenMap:
        """A linear site's frozen map."""
        site = self.anatomy.site(layer, role)
        return FrozenMap(self.model.get_submodule(site.module), site, self.decompositions)

    def frozen_norm(self, layer: int, role: str) -> FrozenNorm:
        """A norm without its scale and shift."""
        norm = self.anatomy.layers[layer].norms[role]
        return FrozenNorm(self.model.get_submodule(norm.module), centred=norm.centred)

    def tokens(self, count: int, layer: int, generator: torch.Generator) -> Tensor:
        """Random tokens of the vocabulary as a layer reads them, see `random_tokens`."""
        module = self.model.get_submodule(self.anatomy.layers[layer].module)
        return random_tokens(self.model, module, count, generator)

    def weight(self, layer: int, role: str) -> Tensor:
        """A linear site's frozen weight [d_in, d_out] (y = x W), float32 on the CPU."""
        site = self.anatomy.site(layer, role)
        whole = quantization.dense_weight(self.model.get_submodule(site.module)).cpu()
        own = whole if site.transposed else whole.T
        return own[:, site.start : site.start + site.out_features].contiguous()

    def recipe(self, n_outputs: int) -> HeadRecipe:
        """The recipe of the task that it was loaded for; `n_outputs` is a task head's."""
        return self.head(n_outputs) if self.lm_head is None else self.lm_recipe()

    def lm_recipe(self) -> HeadRecipe:
        """All hidden states, for the frozen language model head; nothing new is trained."""
        return lm_recipe()

    def head(self, n_outputs: int) -> HeadRecipe:
        """The task head for this backbone."""
        return head_recipe(
            self.config, self.anatomy, n_outputs, pretrained_pooler=self.pretrained_pooler
        )


def load_backbone(request: BackboneRequest) -> Backbone:
    """The backbone that was asked for.

    Raises:
        BackboneError: It cannot be found, reached, read or understood, or not be quantised.
    """
    check_request(request)
    device = torch_device(request.device)
    folder = model_folder(request.name_or_path, request.revision, MODEL_PATTERNS)
    files = safetensors_files(folder)
    fingerprint = fingerprint_of_files(files)
    with quiet_transformers():
        weights = folder if files else _pickle_folder(request)
        model = _model(request, weights, device, safe=bool(files))
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
        quantization=request.quantization,
    )


def stored_fingerprint(request: BackboneRequest) -> str:
    """The fingerprint that the backbone will have, from its files; "" where those are pickles.

    Raises:
        BackboneError: It cannot be found, reached or read.
    """
    folder = model_folder(request.name_or_path, request.revision, MODEL_PATTERNS)
    files = safetensors_files(folder)
    if not files:
        return ""
    return quantised_fingerprint(fingerprint_of_files(files), request.quantization)


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


def _model(request: BackboneRequest, folder: Path, device: torch.device, *, safe: bool) -> Any:
    """The model on its device; a pooler that the checkpoint lacks is left out."""
    config = read_config(request, folder)
    kind = model_class(config, request)
    options = _options(request, config, kind, device)
    try:
        model, info = kind.from_pretrained(
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
    return model


def _options(
    request: BackboneRequest, config: Any, kind: Any, device: torch.device
) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    options: dict[str, Any] = {
        **pooler_option(kind, config),
        "dtype": DTYPES[request.dtype],
    }
    if request.attn_implementation != "auto":
        options["attn_implementation"] = request.attn_implementation
    bones = skeleton_of(request, config)
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
