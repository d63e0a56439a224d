"""Matrix products whose results do not depend on what is computed beside them.

A product's every entry is a sum, whose order libraries choose by the shape of the whole. On CPUs,
MKL's order is one and the same from `ENOUGH` rows on, and for lanes from two columns on; smaller
products are padded up to there. So a lane's steps are bit for bit those of its solo run, however
many lanes run beside it.

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

ENOUGH = 4
"""Rows from which on their number does not matter (MKL 2024 with AVX2)."""


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [..., d_in] times a matrix [d_in, d_out] that all rows share."""
    columns = matrix.shape[1]
    wide = functional.pad(matrix, (0, int(columns == 1)))
    return _padded(lambda rows: rows @ wide, x)[..., :columns]


def lane_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every lane's x [k, m, d_in] times its weight [k, d_in, d_out], plus its bias [k, d_out].

    A single column of a single lane would be a product of a matrix and a vector, forward or
    backward.
    """
    columns = weight.shape[2]
    if len(x) == 1 and x.device.type == "cpu" and 1 in weight.shape[1:]:
        one_in, one_out = (int(size == 1) for size in weight.shape[1:])
        x = functional.pad(x, (0, one_in))
        weight = functional.pad(weight, (0, one_out, 0, one_in))
    if bias is not None and columns > 1:
        return torch.baddbmm(bias.unsqueeze(1), x, weight)[..., :columns]
    made = torch.bmm(x, weight)[..., :columns]
    return made if bias is None else made + bias.unsqueeze(1)


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


def _padded(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A map of x [..., d_in], of which the first row is repeated where there are too few.

    The bias of a slice would be added outside the product, that of a whole tensor inside.
    """
    rows = x.shape[:-1].numel()
    if rows >= ENOUGH or x.device.type != "cpu":
        return forward(x.contiguous())
    flat = x.reshape(rows, -1)
    whole = torch.cat([flat, flat[:1].expand(ENOUGH - rows, -1)])
    return forward(whole)[:rows].view(*x.shape[:-1], -1)
