"""Exact counts of passed types: an adapter is built on empty modules of the right shapes.

Empty modules live on the meta device and cost no memory. Types that decompose weights get random
ones. What has been counted once is remembered.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.backbone.anatomy import Anatomy
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.build import Target, build
from autopeft.methods.passed.types import PeftType
from autopeft.space.schema import Scalar


@dataclass(frozen=True)
class ModuleShape:
    """What has to be known of a module to count an adapter on it.

    Attributes:
        target: What it is called.
        d_in: Width of its input.
        d_out: Width of its output.
        bias: Whether it has a bias, or a shift.
        form: "linear", "centred" or "plain" for a norm, "table" for embeddings of `d_in` tokens,
            "attention" and "layer" for modules that are counted in closed form.
    """

    target: Target
    d_in: int
    d_out: int
    bias: bool
    form: Literal["linear", "centred", "plain", "table", "attention", "layer"] = "linear"

    def empty(self) -> nn.Module:
        """Such a module, on the current device; ValueError for one in closed form."""
        if self.form in ("attention", "layer"):
            raise ValueError(f"{self.target.name} is not built to be counted")
        if self.form == "centred":
            return nn.LayerNorm(self.d_out, bias=self.bias)
        if self.form == "plain":
            return nn.RMSNorm(self.d_out)
        if self.form == "table":
            return nn.Embedding(self.d_in, self.d_out)
        if self.target.transposed:
            stored: nn.Module = Conv1D(self.d_out, self.d_in)
            return stored
        return nn.Linear(self.d_in, self.d_out, bias=self.bias)


@dataclass(frozen=True)
class PassedPlace(Place):
    """A place of a passed method, with all modules of its group.

    Attributes:
        modules: What the group adapts.
        index: Which of them sits here.
    """

    modules: tuple[ModuleShape, ...] = ()
    index: int = 0


def layer_shapes(name: str, layers: Sequence[int], anatomy: Anatomy) -> tuple[ModuleShape, ...]:
    """Whole layers, for a type that has one tensor or more at each, counted in closed form."""
    width = anatomy.hidden_size
    targets = [Target(anatomy.layers[layer].module, name) for layer in layers]
    return tuple(ModuleShape(each, width, width, bias=False, form="layer") for each in targets)


def target_of(place: Place) -> Target:
    """The module of a passed method's place; TypeError for a place of any other."""
    if not isinstance(place, PassedPlace):
        raise TypeError("not a place of peft's own types")
    return place.modules[place.index].target


Settings = tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True)
class Count:
    """Scalars at a place.

    Attributes:
        trained: What is trained there.
        fixed: What is saved beside it.
    """

    trained: int
    fixed: int


def count_at(kind: PeftType, settings: Settings, place: PassedPlace) -> Count:
    """What an adapter has at a place; BackboneError where `peft` refuses the group.

    What is trained depends on the place alone, but for types that share tensors.
    """
    if kind.shared:
        return _counts(kind, settings, _alike(place.modules))[place.index]
    return _counts(kind, settings, _alike((place.modules[place.index],)))[0]


def fixed_at(kind: PeftType, settings: Settings, place: PassedPlace) -> int:
    """Scalars that an adapter saves at a place beside what is trained; errors as `count_at`."""
    return _counts(kind, settings, _alike(place.modules))[place.index].fixed


@lru_cache(10_000)
def _alike(shapes: tuple[ModuleShape, ...]) -> tuple[ModuleShape, ...]:
    """The same modules under names that tell of their roles and their order alone."""
    before: Counter[str] = Counter()
    named = []
    for shape in shapes:
        role = shape.target.role
        target = replace(shape.target, name=f"layers.{before[role]}.{role}")
        named.append(replace(shape, target=target))
        before[role] += 1
    return tuple(named)


@lru_cache(10_000)
def _counts(
    kind: PeftType, settings: Settings, shapes: tuple[ModuleShape, ...]
) -> tuple[Count, ...]:
    with torch.random.fork_rng([]), torch.device("cpu" if kind.weighs else "meta"):
        modules = {shape.target: shape.empty().requires_grad_(False) for shape in shapes}
    built = build(kind, dict(settings), modules, seed=0)
    trained: Counter[Target] = Counter()
    fixed: Counter[Target] = Counter()
    for name, parameter in built.trained().items():
        trained[built.owner(name)] += parameter.numel()
    saved = built.saved()
    for name in built.fixed_names():
        fixed[built.owner(name)] += saved[name].numel()
    for target, first in built.first.items():
        fixed[target] += sum(tensor.numel() for tensor in first.tensors().values())
    return tuple(Count(trained[shape.target], fixed[shape.target]) for shape in shapes)
