"""An adapter as `peft` builds it, on copies of the modules that it adapts.

The copies stand in a tree of their own under the names that the modules have in the base model, so
nothing of the backbone is replaced. Where `peft` left a copy's weights alone, they are the
backbone's own tensors again.
"""

import copy
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.errors import BackboneError, Fault
from autopeft.methods.passed.parameters import arguments, config_class
from autopeft.methods.passed.starts import (
    FirstFactors,
    apart_tensors,
    start_of,
    takes_out,
    without_start,
)
from autopeft.methods.passed.types import NAME, PeftType
from autopeft.space.method_names import PREFIX
from autopeft.space.schema import Scalar

logger = logging.getLogger(__name__)

ROOT = "base_model.model."
"""In front of module names in the tensors that `peft` saves."""

UNREAD = ("shadow_update_transform", "shadow_update_gate")
"""What moves a shadow state on: behind the last layer, nothing reads it."""


@dataclass(frozen=True)
class Target:
    """A module that is adapted.

    Attributes:
        name: Its name within the base model.
        role: Its (first) site.
        transposed: Whether it keeps its weight as [in, out].
    """

    name: str
    role: str
    transposed: bool = False


class BuiltAdapter:
    """One adapter.

    Args:
        model: `peft`'s model of the copies.
        kind: Its type.
        targets: What is adapted.

    Attributes:
        first: What was taken out of the copies' weights; {} for most.
    """

    def __init__(self, model: Any, kind: PeftType, targets: tuple[Target, ...]) -> None:
        self.model, self.kind, self.targets = model, kind, targets
        self.first: dict[Target, FirstFactors] = {}

    @property
    def config(self) -> Any:
        """Its `PeftConfig`."""
        return self.model.peft_config[NAME]

    def layer(self, target: Target) -> nn.Module:
        """`peft`'s layer in place of a module."""
        layer: nn.Module = self.model.base_model.model.get_submodule(target.name)
        return layer

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, each once, by its full name."""
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and "ranknum" not in name
        }

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold what is trained in a type."""
        for parameter in self.trained().values():
            parameter.data = parameter.data.to(dtype)

    def fixed_names(self) -> set[str]:
        """Names of what `peft` saves beside what is trained."""
        rename = type(self.model.base_model)._remove_adapter_name_from_key
        trained = {
            rename(name, NAME)
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        }
        # Lengths of DoRA are saved under the name of the module that holds them.
        return set(self.saved()) - trained - {name.removesuffix(".weight") for name in trained}

    def saved(self) -> dict[str, Tensor]:
        """What `peft` saves, by the names that it gives."""
        from peft import get_peft_model_state_dict

        with told_quietly():
            state: dict[str, Tensor] = get_peft_model_state_dict(
                self.model, save_embedding_layers=False
            )
        return state

    def apart(self) -> dict[str, Tensor]:
        """The same for the whole weights, out of which it may have taken what it starts from."""
        state = self.saved()
        for target, first in self.first.items():
            own = {name: state[name] for name in state if self.owner(name) == target}
            state |= apart_tensors(own, first)
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `saved` gave, or part of it."""
        from peft import set_peft_model_state_dict

        with told_quietly():
            set_peft_model_state_dict(self.model, dict(state))

    def owner(self, name: str) -> Target:
        """The module that a saved or trained tensor belongs to; the first for those of all."""
        inner = name.removeprefix(ROOT)
        for target in self.targets:
            if inner.startswith(f"{target.name}."):
                return target
        return self.targets[0]


def config_of(
    kind: PeftType, settings: Mapping[str, Scalar], targets: tuple[Target, ...], **options: Any
) -> Any:
    """The `PeftConfig` of a group.

    Raises:
        BackboneError: `peft` refuses the settings.
    """
    own = config_class(kind.name)
    known = own.__dataclass_fields__
    given = arguments(kind, settings) | {n: v for n, v in options.items() if n in known}
    names = [target.name for target in targets]
    if "target_modules" in known:
        given["target_modules"] = ends_of(names) if kind.ends else names
    if kind.where == "attention":  # peft counts layers from the last one down
        given["target_modules"] = names[0].rpartition(".")[2]
        given["adapter_layers"] = len(names)
    if "fan_in_fan_out" in known:
        given["fan_in_fan_out"] = any(target.transposed for target in targets)
    if "feedforward_modules" in known:
        given["feedforward_modules"] = [t.name for t in targets if t.role == "down"]
    with told_quietly(), as_faults(kind):
        return own(**given)


def ends_of(names: Iterable[str]) -> list[str]:
    """What modules are called within their layer: behind the first number of their names."""
    return sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in names})


def build(
    kind: PeftType,
    settings: Mapping[str, Scalar],
    modules: Mapping[Target, nn.Module],
    *,
    seed: int,
    first: Mapping[Target, FirstFactors] | None = None,
    within: nn.Module | None = None,
) -> BuiltAdapter:
    """An adapter on copies of modules.

    Args:
        kind: Its type.
        settings: Its parameters.
        modules: What is adapted, in order.
        seed: Of all that it draws.
        first: What it once took out of their weights, where that is known: nothing is decomposed
            again then, and what it starts from is to be loaded.
        within: The base model that they are of, for a type of whole layers.

    Raises:
        BackboneError: `peft` refuses the settings or the modules, or adapts others.
    """
    from peft import PeftModel

    targets = tuple(modules)
    config = config_of(kind, without_start(settings) if first else settings, targets)
    device = next(next(iter(modules.values())).parameters()).device
    tree = _base(kind, modules, within)
    devices = [device] if device.type == "cuda" else []
    empty = device.type == "meta" and start_of(kind, settings)  # factors have to be empty too
    with torch.random.fork_rng(devices), told_quietly(), as_faults(kind):
        torch.manual_seed(seed)
        with torch.device(device) if empty else nullcontext():
            model = PeftModel(tree, config, NAME)
    built = BuiltAdapter(model, kind, targets)
    if kind.where == "attention":
        return built
    _check_targets(built)
    if kind.where == "layers":
        for name in UNREAD:  # a state that no layer reads: nothing would train there
            getattr(built.layer(targets[-1]), name).requires_grad_(False)
        return built
    if takes_out(kind, settings):
        built.first = dict(first or {t: FirstFactors.of(built.layer(t)) for t in targets})
        for target, module in modules.items():
            built.first[target].leave(built.layer(target), module.get_parameter("weight"))
    for target, module in modules.items():
        _shared(built.layer(target), module)
    return built


def _base(
    kind: PeftType, modules: Mapping[Target, nn.Module], within: nn.Module | None
) -> nn.Module:
    """What `peft` takes for the base model."""
    if kind.where == "layers":
        if within is None:
            raise ValueError(f"{kind.name} is built within a model")
        return apart(within)
    copied = _wrapped if kind.where == "attention" else _copied
    tree = _tree({target.name: copied(module) for target, module in modules.items()})
    if kind.where == "attention":
        tree.config = next(iter(modules.values())).config
    return tree


def apart(module: nn.Module) -> nn.Module:
    """Modules of their own all the way down, around the same tensors."""
    own = _bare(module)
    own._modules = {name: each and apart(each) for name, each in module._modules.items()}
    return own


def _bare(module: nn.Module) -> nn.Module:
    """The same tensors and children in a module without what a running pack has put on it."""
    own = copy.copy(module)
    own.__dict__.pop("forward", None)
    own._forward_hooks, own._forward_pre_hooks = OrderedDict(), OrderedDict()
    return own


def _copied(module: nn.Module) -> nn.Module:
    """A copy with tensors of its own."""
    return copy.deepcopy(_bare(module))


def _wrapped(module: nn.Module) -> nn.Module:
    """An attention module for a wrapper to run, and to compute with its maps by themselves.

    Their tensors are the backbone's own. What a pack does at the backbone's maps is not done here:
    prompts are no text.
    """
    own = _bare(module)
    own._modules = {name: each and _bare(each) for name, each in module._modules.items()}
    return own


def _tree(modules: Mapping[str, nn.Module]) -> nn.Module:
    """Modules at the ends of their dotted names."""
    root = nn.Module()
    root.is_gradient_checkpointing = False  # type: ignore[assignment]
    for name, module in modules.items():
        *parents, last = name.split(".")
        at = root
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, nn.Module())
            at = at.get_submodule(parent)
        at.add_module(last, module)
    return root


def _check_targets(built: BuiltAdapter) -> None:
    """That `peft` adapted what was asked for: names that match nothing are no error to it."""
    adapted = set(built.model.base_model.targeted_module_names)
    wanted = {target.name for target in built.targets}
    if adapted != wanted:
        missed = ", ".join(sorted(wanted - adapted)) or ", ".join(sorted(adapted - wanted))
        raise BackboneError(
            Fault("configuration", PREFIX + built.kind.name, missed, "modules that peft adapts")
        )


def _shared(layer: Any, module: nn.Module) -> None:
    """Give a copy the backbone's own tensors again, where they are still the same."""
    base = layer.get_base_layer()
    for name, tensor in module.named_parameters():
        own = base.get_parameter(name)
        if tensor.device.type != "meta" and torch.equal(own, tensor):
            own.data = tensor.data


@contextmanager
def as_faults(kind: PeftType) -> Iterator[None]:
    """What `peft` refuses, as a fault of the configuration with its own words."""
    try:
        yield
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        allowed = "what peft accepts there"
        raise BackboneError(
            Fault("configuration", PREFIX + kind.name, "what peft refuses", allowed, said)
        ) from error


@contextmanager
def told_quietly() -> Iterator[None]:
    """`peft`'s warnings go to the log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for each in caught:
        logger.debug("peft: %s", each.message)
