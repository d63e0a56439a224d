"""VectorFit: a weight's singular values and its bias are trained (arXiv 2503.19530).

y + (x V) diag(ds) U^T + db, W^T = U S V^T the frozen SVD of the map y = W^T x + b, ds [n] with
n = min(d_in, d_out), and db [d_out]; both start at zero. As with `bitfit`, a map that has no bias
gets one, and a key none: without rotary positions its gradient would be zero but for rounding.

The paper's adaptive freezing of the vectors that moved most is not done: its schedule and
constants could not be checked, as no code was released.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneOperator, Place
from autopeft.space.schema import MethodSchema, ParameterSchema


class VectorFitOperator(LaneOperator):
    """Stacked changes of singular values [k, n], and of biases [k, d_out], if any; no padding."""

    values: Tensor
    bias: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(x V) diag(ds) U^T + db; keeps x V."""
        svd = self.frozen.svd(self.values)
        within = product(x.flatten(1, 2), svd.inputs) * self.values.unsqueeze(1)
        made = product(within, svd.outputs.T)
        if "bias" in self.stacked_names:
            made = made + self.bias.unsqueeze(1)
        return made.view(*x.shape[:3], -1)


class VectorFit(OnLinearMaps):
    """The method `vectorfit`."""

    operator_type = VectorFitOperator
    schema = MethodSchema(
        name="vectorfit",
        size="",
        parameters=(ParameterSchema("bias", "bool", default=True),),
        sites=LINEAR_ROLES,
        default_sites=("query", "key", "value", "output", "up", "down"),
    )
    source = "Hegde et al. 2025, VectorFit, arXiv 2503.19530; no code released"
    identity = "exact"

    def count(self, group: Group, place: Place) -> int:
        """min(d_in, d_out), and d_out of the bias but for keys."""
        bias = place.d_out if _trains_bias(group, place) else 0
        return min(place.d_in, place.d_out) + bias

    def frozen_work(self, group: Group, place: Place) -> int:
        """U and V."""
        return min(place.d_in, place.d_out) * (place.d_in + place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x V, and scaled while it runs; U, S and V, which all lanes share."""
        rank = min(place.d_in, place.d_out)
        shared = rank * (place.d_in + place.d_out + 1)
        return Kept(rank, reads=False, shared=shared, running=rank)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Zeros."""
        tensors = {"values": torch.zeros(min(place.d_in, place.d_out))}
        if _trains_bias(group, place):
            tensors["bias"] = torch.zeros(place.d_out)
        return tensors

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W + V diag(ds) U^T, and b + db."""
        svd, bias = frozen.svd(), frozen.bias
        change = (svd.inputs * tensors["values"]) @ svd.outputs.T
        if "bias" in tensors:
            bias = tensors["bias"] if bias is None else bias + tensors["bias"]
        return DenseMap(frozen.weight + change, bias)

    def stack_key(self, group: Group) -> Hashable:
        """With biases, or without."""
        return group["bias"]


def _trains_bias(group: Group, place: Place) -> bool:
    return bool(group["bias"]) and place.site != "key"


registry.register(VectorFit())
