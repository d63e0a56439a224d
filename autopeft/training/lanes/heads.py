"""Stacked task heads: every lane has its own, shaped as transformers' task class has it."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import HeadRecipe, HeadStep
from autopeft.backbone.pointwise import pointwise
from autopeft.backbone.products import lane_product
from autopeft.training.lanes.seeds import Seeds


def reads_first_token(anatomy: Anatomy, recipe: HeadRecipe, *, attention: str) -> bool:
    """Whether the head reads the first token alone, and the last layer can be run on it.

    Args:
        anatomy: The backbone's.
        recipe: The task head.
        attention: The backbone's attention implementation.
    """
    first = recipe.pool in ("first", "pooler") and not anatomy.causal
    return first and anatomy.packable and anatomy.carries_prefix and attention == "sdpa"


class LaneHead(nn.Module):
    """The head's steps with weights [K, d_in, d_out] and biases [K, d_out].

    Weights are drawn N(0, std) and biases zero, as transformers initialises new heads; all lanes
    of a replicate start from the same head, as they would alone.

    Args:
        recipe: The steps.
        lanes: K.
        seeds: Source of the initial weights.
        std: The backbone's initialiser range.
    """

    def __init__(self, recipe: HeadRecipe, lanes: int, seeds: Seeds, *, std: float) -> None:
        super().__init__()
        self._steps = recipe.steps
        for index, step in enumerate(recipe.steps):
            for name, tensor in _initial(step, seeds, std).items():
                stacked = tensor.unsqueeze(0).repeat(lanes, *[1] * tensor.dim())
                self.register_parameter(f"{index}_{name}", nn.Parameter(stacked))

    def forward(self, pooled: Tensor) -> Tensor:
        """[K, B, d] -> [K, B, n_outputs], in the head's own dtype; itself without steps."""
        x = pooled if not self._steps else pooled.to(next(self.parameters()).dtype)
        for index, step in enumerate(self._steps):
            x = self._step(index, step, x)
        return x

    def _step(self, index: int, step: HeadStep, x: Tensor) -> Tensor:
        x = lane_product(x, self.get_parameter(f"{index}_weight").to(x.dtype))
        if step.bias:
            x = x + self.get_parameter(f"{index}_bias").to(x.dtype).unsqueeze(1)
        if step.activation != "none":
            x = pointwise(ACT2FN[step.activation], x)
        if step.norm is not None:
            x = functional.layer_norm(x, x.shape[-1:], eps=step.norm.eps)
            x = x * self.get_parameter(f"{index}_norm_weight").unsqueeze(1)
            if step.norm.bias:
                x = x + self.get_parameter(f"{index}_norm_bias").unsqueeze(1)
        return x


def _initial(step: HeadStep, seeds: Seeds, std: float) -> dict[str, Tensor]:
    generator = seeds.generator("init", f"head.{step.name}")
    tensors = {
        "weight": torch.randn(step.in_features, step.out_features, generator=generator) * std
    }
    if step.bias:
        tensors["bias"] = torch.zeros(step.out_features)
    if step.norm is not None:
        tensors["norm_weight"] = torch.ones(step.out_features)
        if step.norm.bias:
            tensors["norm_bias"] = torch.zeros(step.out_features)
    return tensors
