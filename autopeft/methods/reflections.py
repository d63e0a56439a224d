"""Block-diagonal Householder reflections of the last axis, by inner products alone."""

import torch
from torch import Tensor
from torch.nn import functional


def along(x: Tensor, directions: Tensor) -> Tensor:
    """What x has of one direction per block: [k, R, n b] and [k, n, b] -> [k, R, n b].

    It is x diag(u_1 u_1^T, u_2 u_2^T, ...) with the directions made unit vectors, and costs two
    multiplications an entry.
    """
    unit = functional.normalize(directions, dim=-1).unsqueeze(1)
    parts = x.view(*x.shape[:2], *directions.shape[1:])
    return ((parts * unit).sum(-1, keepdim=True) * unit).flatten(2)


def columns(directions: Tensor) -> Tensor:
    """The unit directions of all blocks as columns: [n, b] -> [n b, n], zero outside a block."""
    unit = functional.normalize(directions, dim=-1)
    apart = torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    return (unit.unsqueeze(-1) * apart.unsqueeze(1)).flatten(0, 1)
