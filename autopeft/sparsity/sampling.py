"""Draws of layers without replacement, on the host or where their weights are.

The largest of log w_i + Gumbel_i are positions drawn one after the other, each with probability
proportional to its weight (Efraimidis and Spirakis 2006). They need one uniform number per
position, whatever has been drawn before: numbers come from the host, weights may be on a device.
"""

import numpy as np
import torch
from torch import Tensor

WORD = 62
"""Positions that one number tells of a set, as its bits."""


def gumbels(uniforms: np.ndarray) -> np.ndarray:
    """Standard Gumbel numbers, made of uniform ones in [0, 1)."""
    made: np.ndarray = -np.log(-np.log(np.maximum(uniforms, np.finfo(np.float64).tiny)))
    return made


def weighted_subset(log_weights: np.ndarray, count: int, uniforms: np.ndarray) -> tuple[int, ...]:
    """Positions drawn one after the other, each with probability proportional to its weight.

    Args:
        log_weights: [n].
        count: Of positions, at most n.
        uniforms: In [0, 1), [n].

    Returns:
        Ascending positions.
    """
    order = np.argsort(-(log_weights + gumbels(uniforms)), kind="stable")
    return tuple(sorted(int(index) for index in order[:count]))


def weighted_subsets(log_weights: Tensor, count: int, noise: Tensor) -> Tensor:
    """`weighted_subset` for many draws at once, without waiting for the device.

    Args:
        log_weights: [n].
        count: Of positions, at most n.
        noise: `gumbels`, [draws, n].

    Returns:
        bool [draws, n], True at the positions of each.
    """
    order = torch.argsort(log_weights + noise, dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(noise, dtype=torch.bool)
    return chosen.scatter_(1, order[:, :count], True)


def first_different(sets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` sets that differ from all before them, without waiting for the device.

    Args:
        sets: bool [draws, n].
        count: At most as many as draws.

    Returns:
        bool [count, n], in the order of drawing, and bool [count]: False for what fills up the
        end where fewer are different.
    """
    words = [_number(part) for part in torch.split(sets, WORD, dim=1)]
    order = torch.arange(len(sets), device=sets.device)
    for word in words:
        order = order[torch.argsort(word[order], stable=True)]
    # Equal sets now lie together, the first one drawn in front.
    together = torch.stack(words)[:, order]
    in_front = torch.ones_like(order, dtype=torch.bool)
    in_front[1:] = (together[:, 1:] != together[:, :-1]).any(dim=0)
    new = torch.empty_like(in_front).scatter_(0, order, in_front)
    chosen = torch.argsort((~new).to(torch.uint8), stable=True)[:count]
    return sets[chosen], new[chosen]


def _number(bits: Tensor) -> Tensor:
    """bool [draws, m <= WORD] -> int64 [draws], bit i for position i."""
    return (bits.long() << torch.arange(bits.shape[1], device=bits.device)).sum(dim=1)
