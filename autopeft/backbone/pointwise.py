"""Functions of single numbers that do not depend on where in a tensor a number stands.

On a CPU, torch computes some functions (SiLU, sigmoid, GELU's tanh form, angles) by whole
vectors, and what is left over at the end of each thread's share one by one, by another formula. So
a number at the end of a lane would round otherwise within a pack.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

WHOLE = 64
"""Numbers that a step of torch's widest loop takes: four vectors of 512 bits of float32."""

GRAIN = 32768
"""Numbers per thread from which on torch takes one more (`at::internal::GRAIN_SIZE`)."""


def pointwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of every number of x by itself, of any shape; like `function(x)` to rounding.

    A contiguous tensor on a CPU is padded to whole steps of every thread's loop, which costs
    nothing where its size is one already. Rows of a slice are computed each by itself anyway, but
    for a lone one, which passes for contiguous (and GELU has a kernel of its own for these).
    """
    count = x.numel()
    if x.device.type != "cpu" or not x.is_contiguous():
        return function(x)
    if x.dim() > 1 and count == x.shape[-1] and x.stride(-2) != count:
        return function(functional.pad(x.view(1, -1), (0, 1, 0, 1))[:, :-1])[:1].view_as(x)
    more = -count % (WHOLE * max(1, min(torch.get_num_threads(), -(-count // GRAIN))))
    if not more:
        return function(x)
    return function(functional.pad(x.flatten(), (0, more)))[:count].view_as(x)
