"""A configuration of any methods as an adapter of the type that autopeft registers with `peft`.

`autopeft.register_with_peft()` makes `PeftModel.from_pretrained` load it. Names of tensors are our
saved names with slashes for dots: `peft` takes dots for modules.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autopeft.backbone.heads import HeadRecipe
from autopeft.configuration import Configuration
from autopeft.errors import ExportError, Fault
from autopeft.export.peft_options import shared_options
from autopeft.methods import registry
from autopeft.methods.passed.family import whole_model

TYPE = "AUTOPEFT"
PREFIX = "autopeft_lane."


def peft_name(name: str) -> str:
    """A saved name as the name of a parameter."""
    return name.replace(".", "/")


def saved_name(name: str) -> str:
    """The inverse, of a name with whatever stands before."""
    return name.partition(PREFIX)[2].replace("/", ".")


def holds(method: str) -> bool:
    """Whether the type holds a method's groups: not what reads the whole model's arguments."""
    return not whole_model(registry[method])


def registered(
    configuration: Configuration,
    head: HeadRecipe,
    weights: Mapping[str, Tensor],
    *,
    base_model: str,
    sites: Mapping[str, str] | None,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of `adapter_config.json`, and tensors without those of the head.

    Args:
        configuration: What the tensors belong to: under its sparsity rule, folded.
        head: The task head.
        weights: The lane's tensors by saved name, folded, fixed ones too.
        base_model: Its name.
        sites: What the model block says of sites.
        seed: That of its training.

    Raises:
        ExportError: No transformers task class has such a head; or one of `peft`'s own types has
            the whole model to itself, which is an adapter of its own.
    """
    for name in configuration.methods:
        if why := whole_model(registry[name]):
            hint = f"{why}: use --format yaml, and autopeft.load"
            given, allowed = "a type that has the model to itself", "methods of autopeft"
            raise ExportError(Fault("export", name, given, allowed, hint))
    options = shared_options(head, base_model)
    groups = {
        name: groups
        for name, groups in configuration.to_dict().items()
        if name not in ("training", "sparsity")
    }
    config = {
        "peft_type": TYPE,
        "configuration": groups,
        "seed": seed,
        "sites": None if sites is None else dict(sites),
        **options,
        "task_type": options["task_type"].value,
    }
    tensors = {
        f"base_model.{PREFIX}{peft_name(name)}": tensor.contiguous()
        for name, tensor in weights.items()
        if not name.startswith("head.")
    }
    return config, tensors
