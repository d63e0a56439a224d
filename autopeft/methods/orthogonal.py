"""Orthogonal matrices by Cayley's transform, and block-diagonal products with them."""

from functools import lru_cache

import torch
from torch import Tensor

from autopeft.backbone.products import lane_product


def skew(upper: Tensor, size: int) -> Tensor:
    """Q with Q^T = -Q of its entries above the diagonal, row by row: [..., m] -> [..., b, b]."""
    rows, columns = _above(size, upper.device)
    half = upper.new_zeros(*upper.shape[:-1], size, size)
    half[..., rows, columns] = upper
    return half - half.transpose(-2, -1)


@lru_cache(64)
def _above(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept per device: a captured step must not copy from the host."""
    rows, columns = torch.triu_indices(size, size, 1, device=device)
    return rows, columns


def turn(upper: Tensor, size: int) -> Tensor:
    """R - I of the rotation R = (I - Q) (I + Q)^-1, [..., m] -> [..., b, b]; zero at zero.

    It is -2 Q (I + Q)^-1, so that small turns lose nothing to rounding. I + Q is never singular:
    Q's eigenvalues are imaginary.
    """
    q = skew(upper, size)
    one = torch.eye(size, dtype=q.dtype, device=q.device)
    solved: Tensor = torch.linalg.solve_ex(one + q, -2.0 * q)[0]  # the two factors commute
    return solved


def blockwise(x: Tensor, blocks: Tensor) -> Tensor:
    """x diag(R_1, R_2, ...): [k, R, n b] and blocks [k, n, b, b] -> [k, R, n b].

    With one block, n = 1 of [k, 1, b, b], it serves for all of x.
    """
    k, rows = x.shape[:2]
    size = blocks.shape[-1]
    parts = x.view(k, rows, -1, size)
    if blocks.shape[1] == 1:
        return lane_product(parts.flatten(1, 2), blocks[:, 0]).view(k, rows, -1)
    turned = torch.matmul(parts.transpose(1, 2).contiguous(), blocks)
    return turned.transpose(1, 2).reshape(k, rows, -1)
