"""Matrix products whose results depend as little as can be on what is computed beside them.

A product's every entry is a sum, whose order libraries choose by the shape of the whole. On CPUs,
MKL's order is mostly one and the same from `ENOUGH` rows on, and for a lane from two columns on;
smaller products are padded up to there. So a lane's steps are mostly bit for bit those of its solo
run, however many lanes run beside it; odd widths and slices that are not aligned still round
otherwise. Elsewhere nothing is padded: a GPU picks its kernels by shape.

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
from transformers.pytorch_utils import Conv1D

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
    backward.
    """
    rows, columns = x.shape[1], weight.shape[2]
    if x.device.type == "cpu":
        alone = len(x) == 1
        one_in, one_out = (int(alone and size == 1) for size in weight.shape[1:])
        more = max(0, ENOUGH - rows)
        x = functional.pad(x, (0, one_in, 0, more)) if one_in or more else x
        weight = functional.pad(weight, (0, one_out, 0, one_in)) if one_in or one_out else weight
    if bias is None:
        return torch.bmm(x, weight)[:, :rows, :columns]
    if columns > 1:
        return torch.baddbmm(bias.unsqueeze(1), x, weight)[:, :rows]
    return torch.bmm(x, weight)[:, :rows, :columns] + bias.unsqueeze(1)


@contextmanager
def padded_products(model: nn.Module) -> Iterator[None]:
    """Inside, the model's linear maps on a CPU compute at least `ENOUGH` rows.

    Those that are quantised, or whose forward somebody has replaced, stay as they are.
    """
    every: list[Any] = [each for each in model.modules() if type(each) in (nn.Linear, Conv1D)]
    plain = [each for each in every if "forward" not in vars(each)]
    maps = [each for each in plain if each.weight.device.type == "cpu"]
    for module in maps:
        module.forward = partial(_padded, module.forward)
    try:
        yield
    finally:
        for module in maps:
            del module.forward


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
