"""BitFit: biases are trained, of the layers and sites that the group names (arXiv 2106.10199).

y + db. Where a linear map has a bias, its change is trained; where it has none (Llama), db is a
bias of its own. A key's bias is not offered: without rotary positions it adds the same number to
all of a query's scores, so that its gradient is zero, and an optimizer would follow its rounding.
`peft` trains either all biases of a model (`bias="all"`) or these (BEFT). The norms' biases are
the method `norm`'s.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneOperator, Place
from autopeft.space.schema import MethodSchema, Scalar


class BiasOperator(LaneOperator):
    """Stacked changes of a bias [k, d_out]; there is no padding."""

    bias: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """db, for every token."""
        return self.bias[:, None, None].expand(*y.shape)


class BitFit(OnLinearMaps):
    """The method `bitfit`."""

    operator_type = BiasOperator
    schema = MethodSchema(
        name="bitfit",
        size="",
        parameters=(),
        sites=tuple(role for role in LINEAR_ROLES if role != "key"),
        default_sites=("query", "value", "output", "up", "down"),
    )
    source = "Ben Zaken et al. 2021, BitFit, arXiv 2106.10199"
    identity = "exact"
    peft_type = "BEFT"
    peft_fill: float | None = 0.0

    def count(self, group: Group, place: Place) -> int:
        """d_out."""
        return place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Nothing."""
        return Kept(reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Zeros."""
        return {"bias": torch.zeros(place.d_out)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W, and b + db."""
        bias = tensors["bias"] if frozen.bias is None else frozen.bias + tensors["bias"]
        return DenseMap(frozen.weight, bias)

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """`BeftConfig` has nothing to set."""
        return {} if config["init_weights"] else None

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """The same, with an axis more."""
        return {"beft_bias": tensors["bias"].unsqueeze(0)}


registry.register(BitFit())
