"""The parallel adapter: a bottleneck beside a sub-layer (arXiv 2110.04366).

y + scale * f(x), x the sub-layer's input. The down projection is kaiming-uniform(a = sqrt 5), the
up projection zero, the scale 4 by default, as AutoPEFT does (arXiv 2301.12132).
"""

import math

import torch
from torch import Tensor

from autopeft.configuration import Group
from autopeft.methods.base import Start, registry
from autopeft.methods.bottleneck import Bottleneck, BottleneckOperator, with_scale
from autopeft.methods.lane_operator import Place


class ParallelAdapter(Bottleneck):
    """The method `parallel_adapter`."""

    source = "He et al. 2021, arXiv 2110.04366; constants of AutoPEFT, arXiv 2301.12132"
    identity = "exact"
    operator_type = BottleneckOperator

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Down uniform in +-1/sqrt(d) (kaiming-uniform with a = sqrt 5), all else zero."""
        size, bound = int(group["size"]), 1.0 / math.sqrt(place.d_in)
        down = torch.empty(place.d_in, size).uniform_(-bound, bound, generator=start.draw("down"))
        tensors = {
            "down": down,
            "down_bias": torch.zeros(size),
            "up": torch.zeros(size, place.d_out),
            "up_bias": torch.zeros(place.d_out),
        }
        return with_scale(group, place.d_out, tensors)


registry.register(ParallelAdapter("parallel_adapter", scale=4.0))
