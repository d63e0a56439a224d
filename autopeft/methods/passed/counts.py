"""Exact counts of passed types: an adapter is built on empty modules of the right shapes.

Empty modules live on the meta device and cost no memory. Types that decompose weights get random
ones. What has been counted once is remembered.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.methods.base import Place
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
        norm: "centred" or "plain" for a norm, "" for a linear map.
    """

    target: Target
    d_in: int
    d_out: int
    bias: bool
    norm: str = ""

    def empty(self) -> nn.Module:
        """Such a module, on the current device."""
        if self.norm == "centred":
            return nn.LayerNorm(self.d_out, bias=self.bias)
        if self.norm:
            return nn.RMSNorm(self.d_out)
        if self.target.transposed:
            return Conv1D(self.d_out, self.d_in)
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


Settings = tuple[tuple[str, Scalar], ...]


def count_at(kind: PeftType, settings: Settings, place: PassedPlace) -> int:
    """Trained scalars at a place; BackboneError where `peft` refuses the group."""
    if kind.shared:
        return _counts(kind, settings, place.modules)[place.index]
    own = place.modules[place.index]
    alike = replace(own, target=replace(own.target, name=f"0.{own.target.role}"))
    return _counts(kind, settings, (alike,))[0]


@lru_cache(10_000)
def _counts(
    kind: PeftType, settings: Settings, shapes: tuple[ModuleShape, ...]
) -> tuple[int, ...]:
    with torch.random.fork_rng([]), torch.device("cpu" if kind.weighs else "meta"):
        modules = {shape.target: shape.empty().requires_grad_(False) for shape in shapes}
    built = build(kind, dict(settings), modules, seed=0)
    counts: Counter[Target] = Counter()
    for tensor_name, parameter in built.trained().items():
        counts[built.owner(tensor_name)] += parameter.numel()
    return tuple(counts[shape.target] for shape in shapes)
