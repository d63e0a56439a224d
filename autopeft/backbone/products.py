"""Matrix products whose results depend as little as can be on what is computed beside them.

A product's every entry is a sum, whose order libraries choose by the shape of the whole. On CPUs,
MKL's order is mostly one and the same from `ENOUGH` rows on, and for a lane from two columns on;
smaller products are padded up to there, so that a lane's steps are bit for bit those of its solo
run wherever a test looked, however many lanes run beside it. Elsewhere nothing is padded: a GPU
picks its kernels by shape.

Adam makes this matter: it turns a gradient that is all rounding into a step of the learning rate's
size, so that single weights end far apart where a sum was merely taken in another order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2CLS
from transformers.pytorch_utils import Conv1D

from autopeft.backbone.pointwise import pointwise

ACTIVATIONS = {each[0] if isinstance(each, tuple) else each for each in ACT2CLS.values()}
"""Classes of the functions that transformers' models name in their configurations."""

ENOUGH = 16
"""Rows from which on their number does not matter (MKL 2024 with AVX2: from 4 on with one thread,
from 12 on with two)."""


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [..., d_in] times a matrix [d_in, d_out] that all rows share."""
    if matrix.shape[1] > 1 or x.device.type != "cpu":
        return _padded(lambda rows: rows @ matrix, x)
    wide = functional.pad(matrix, (0, 1))
    return _padded(lambda rows: rows @ wide, x)[..., :1]


def lane_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every lane's x [k, m, d_in] times its weight [k, d_in, d_out], plus its bias [k, d_out].

    A single column of a single lane would be a product of a matrix and a vector, forward or
    backward. The result is contiguous, as a lane's own would be: of slices, torch computes some
    functions (GELU) otherwise.
    """
    rows, columns = x.shape[1], weight.shape[2]
    if x.device.type == "cpu":
        alone = len(x) == 1
        one_in, one_out = (int(alone and size == 1) for size in weight.shape[1:])
        more = max(0, ENOUGH - rows)
        x = functional.pad(x, (0, one_in, 0, more)) if one_in or more else x
        weight = functional.pad(weight, (0, one_out, 0, one_in)) if one_in or one_out else weight
    if bias is None:
        return torch.bmm(x, weight)[:, :rows, :columns].contiguous()
    if columns > 1:
        return torch.baddbmm(bias.unsqueeze(1), x, weight)[:, :rows].contiguous()
    return torch.bmm(x, weight)[:, :rows, :columns] + bias.unsqueeze(1)


@contextmanager
def padded_model(model: nn.Module) -> Iterator[None]:
    """Inside, a model on a CPU pads: linear maps to `ENOUGH` rows, activations to whole vectors.

    Modules that are quantised, or whose forward somebody has replaced, stay as they are.
    """
    every: list[Any] = [each for each in model.modules() if "forward" not in vars(each)]
    maps = [each for each in every if type(each) in (nn.Linear, Conv1D)]
    here = [each for each in maps if each.weight.device.type == "cpu"]
    activations = [each for each in every if type(each) in ACTIVATIONS and not _has_weights(each)]
    for module in here:
        module.forward = partial(_padded, module.forward)
    for module in activations:
        module.forward = partial(pointwise, module.forward)
    try:
        yield
    finally:
        for module in here + activations:
            del module.forward


def _has_weights(module: nn.Module) -> bool:
    """Whether it is no function of single numbers alone: PReLU's slopes are one a channel."""
    return any(True for _ in module.parameters())


def _padded(forward: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:  # noqa: A002
    """A map of an input [..., d_in], of which the first row is repeated where there are too few.

    The bias of a slice would be added outside the product, that of a whole tensor inside.
    """
    x, rows = input, input.shape[:-1].numel()
    if x.device.type != "cpu":
        return forward(x)
    if rows >= ENOUGH or not rows:
        return forward(x.contiguous())
    flat = x.reshape(rows, -1)
    whole = torch.cat([flat, flat[:1].expand(ENOUGH - rows, -1)])
    return forward(whole)[:rows].view(*x.shape[:-1], -1)
