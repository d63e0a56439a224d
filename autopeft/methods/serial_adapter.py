"""The serial adapter: a bottleneck on a sub-layer's output (arXiv 1902.00751).

y + scale * f(y), before the residual. Both projections are drawn N(0, 0.02) with zero biases, as
AutoPEFT does (arXiv 2301.12132): the configured model is close to, but not exactly, the backbone.
Where several methods share a sub-layer, y holds LoRA's update and not the parallel adapter's.
"""

import torch
from torch import Tensor

from autopeft.configuration import Group
from autopeft.methods.base import Start, registry
from autopeft.methods.bottleneck import Bottleneck, OnOutputs, with_scale
from autopeft.methods.lane_operator import Place

INITIAL_STD = 0.02


class SerialAdapter(Bottleneck):
    """The method `serial_adapter`."""

    source = "Houlsby et al. 2019, arXiv 1902.00751; constants of AutoPEFT, arXiv 2301.12132"
    identity = "near: both projections start at N(0, 0.02), as in AutoPEFT"
    operator_type = OnOutputs

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Both projections N(0, 0.02), biases zero."""
        size = int(group["size"])
        tensors = {
            "down": torch.randn(place.d_in, size, generator=start.draw("down")) * INITIAL_STD,
            "down_bias": torch.zeros(size),
            "up": torch.randn(size, place.d_out, generator=start.draw("up")) * INITIAL_STD,
            "up_bias": torch.zeros(place.d_out),
        }
        return with_scale(group, place.d_out, tensors)


registry.register(SerialAdapter("serial_adapter", scale=1.0))
