"""A configuration of any methods as an adapter of the type that autopeft registers with `peft`.

`autopeft.register_with_peft()` makes `PeftModel.from_pretrained` load it. Names of tensors are our
saved names with slashes for dots: `peft` takes dots for modules.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autopeft.backbone.heads import HeadRecipe
from autopeft.configuration import Configuration, Group
from autopeft.errors import ExportError, Fault
from autopeft.export.peft_options import shared_options
from autopeft.methods import registry
from autopeft.methods.passed.tokens import PassedTokens

TYPE = "AUTOPEFT"
PREFIX = "autopeft_lane."


def peft_name(name: str) -> str:
    """A saved name as the name of a parameter."""
    return name.replace(".", "/")


def saved_name(name: str) -> str:
    """The inverse, of a name with whatever stands before."""
    return name.partition(PREFIX)[2].replace("/", ".")


def holds(method: str) -> bool:
    """Whether the type holds a method's groups: not where they put tokens before a text."""
    own = registry[method]
    if isinstance(own, PassedTokens):
        return False
    settings: dict[str, Any] = {own.schema.size: 1} if own.schema.size else {}
    return not own.tokens(Group.of(method, [0], **settings))


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
        ExportError: No transformers task class has such a head; or tokens are put before the
            text, for which a model that `peft` calls has no room.
    """
    prompts = [
        group.method for group in configuration.groups if registry[group.method].tokens(group)
    ]
    if prompts:
        hint = "use --format yaml, and autopeft.load"
        raise ExportError(Fault("export", prompts[0], "prompt tokens", "methods without", hint))
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
