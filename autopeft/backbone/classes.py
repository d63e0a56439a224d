"""Which transformers class a configuration is loaded with, and for which tasks there is none."""

import inspect
from collections.abc import Iterable
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from autopeft.backbone.heads import POOLED
from autopeft.errors import BackboneError, Fault
from autopeft.study.metrics import CAUSAL_LM


def base_class(config: Any, name: str) -> Any:
    """The base model's class; of an encoder-decoder, the encoder's.

    Args:
        config: A `PretrainedConfig`.
        name: The model's, for errors.

    Raises:
        BackboneError: The architecture has none.
    """
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)]
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING:
        given = f"{name}, whose architecture {config.model_type!r} has no base model"
        allowed = "encoders, decoders, and encoder-decoders with an encoder class, such as T5"
        raise BackboneError(Fault("model", "name_or_path", given, allowed))
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def causal_class(config: Any, name: str) -> Any:
    """The `...ForCausalLM` class of a decoder.

    Raises:
        BackboneError: The architecture is no decoder.
    """
    model_type = config.model_type
    if (
        config.is_encoder_decoder
        or model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        raise no_decoder(model_type, name)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def no_decoder(model_type: str, name: str) -> BackboneError:
    """What is said of an encoder that shall be a causal language model."""
    return BackboneError(
        Fault(
            "model",
            "task",
            f"{CAUSAL_LM} with {name}, an architecture ({model_type}) that reads both ways",
            "a decoder, such as Llama, Qwen, Mistral, Gemma, GPT-2 or OPT",
            "take a decoder, or task: sequence-classification",
        )
    )


def pooler_option(model_class: Any, config: Any) -> dict[str, bool]:
    """Leaves out a pooling layer that the task class does not have (RoBERTa, ViT)."""
    if "add_pooling_layer" not in inspect.signature(model_class.__init__).parameters:
        return {}
    return {"add_pooling_layer": config.model_type in POOLED}


def lacking(missing: Iterable[str], name: str) -> BackboneError:
    """What is said of a checkpoint without some of the model's weights."""
    names = sorted(missing)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    given = f"{name}, which lacks {len(names)} weights ({shown})"
    return BackboneError(Fault("model", "name_or_path", given, "a complete checkpoint"))
