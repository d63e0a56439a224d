"""Prompt tuning as HF `peft` holds it: exact for some decoders, and language models alone.

`peft` puts a prompt among the input embeddings, so that the text moves behind it. That is a prompt
at the first layer where a layer reads embeddings as they are and positions are distances. For
sequence classification, transformers does not find the last token of rows that come as embeddings.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe
from autopeft.configuration import Configuration
from autopeft.errors import ExportError, Fault

TYPE = "PROMPT_TUNING"
EXACT = ("llama", "qwen2", "qwen3")
"""Architectures without a factor on embeddings, learned positions or windows of attention."""


def is_prompt(configuration: Configuration) -> bool:
    """Whether it is prompts alone."""
    return configuration.methods == ("prompt",)


def prompt_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """What of prompts, if there are any, HF peft would do in another way."""
    groups = [group for group in configuration.groups if group.method == "prompt"]
    faults, hint = [], "use --format yaml"
    layers = sorted({layer for group in groups for layer in group.layers} - {0})
    if layers:
        given = ", ".join(map(str, layers))
        faults.append(Fault("export", "prompt.layers", given, "layer 0 alone", hint))
    if groups and anatomy.architecture not in EXACT:
        allowed = f"{', '.join(EXACT)}, whose embeddings HF peft can lengthen to the same effect"
        faults.append(Fault("export", "prompt", anatomy.architecture, allowed, hint))
    return faults


def classifier_faults(configuration: Configuration) -> list[Fault]:
    """What HF peft holds of language models alone; [] where that is nothing."""
    if "prompt" not in configuration.methods:
        return []
    why = "a prompt of a classifier, whose last token transformers does not find then"
    return [Fault("export", "prompt", why, "task causal-lm", "use --format yaml")]


def prompt_config(
    configuration: Configuration, head: HeadRecipe, options: Mapping[str, Any]
) -> Any:
    """The `PeftConfig`; `prompt_faults` has found none.

    Args:
        configuration: Of one prompt.
        head: Of the task.
        options: Those of every type.

    Raises:
        ExportError: The task is none of language modelling.
    """
    from peft import PromptTuningConfig

    if head.pool != "all":
        raise ExportError(classifier_faults(configuration))
    (group,) = configuration.groups
    return PromptTuningConfig(num_virtual_tokens=int(group["length"]), **options)


def prompt_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tokens in the order of reading, as HF peft saves them."""
    return {"prompt_embeddings": weights["prompt.0.prompt.tokens"].flip(0).contiguous()}
