"""DiaBlo: whole blocks on the diagonal of a linear map (arXiv 2506.03230).

y + (x_1 D_1, ... x_N D_N): input and output are cut into N equal parts, and a full block D_i of
zeros is trained between each two that belong together; no product of factors. The size is the
`side` of a block along the map's shorter side, N = min(d_in, d_out) / side, so that every map of a
model trains max(d_in, d_out) * side weights. The paper gives N, and pads a width that it does not
divide; here such a side is refused. (`sparse` with the score `diagonal` trains square blocks.)
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import Call, LaneDropout, LaneOperator, Place, Stack
from autopeft.methods.melora import in_parts, on_diagonal, side_by_side
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class DiabloOperator(LaneOperator):
    """Stacked blocks [k, N, d_in / N, d_out / N]: all lanes have the same, there is no padding."""

    blocks: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x_i D_i, side by side."""
        parts = in_parts(self.dropout(x, call), self.blocks.shape[1])
        return side_by_side(lane_product(parts, self.blocks.flatten(0, 1)), x)


class Diablo(OnLinearMaps):
    """The method `diablo`."""

    operator_type = DiabloOperator
    schema = MethodSchema(
        name="diablo",
        size="side",
        parameters=(
            ParameterSchema("side", "int", minimum=1),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Gurses et al. 2025, DiaBlo, arXiv 2506.03230; ziyangjoy/DiaBlo"
    identity = "exact"

    def legal(self, name: str, place: Place) -> tuple[Scalar, ...] | None:
        """Sides of which the shorter width holds N, where N parts the longer one too."""
        if name != "side":
            return None
        shorter = min(place.d_in, place.d_out)
        return tuple(sorted(shorter // n for n in divisors(place.d_in, place.d_out)))

    def count(self, group: Group, place: Place) -> int:
        """max(d_in, d_out) * side."""
        return max(place.d_in, place.d_out) * int(group["side"])

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x in parts, which is a copy."""
        return Kept(place.d_in, reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Zeros."""
        n = min(place.d_in, place.d_out) // int(group["side"])
        return {"blocks": torch.zeros(n, place.d_in // n, place.d_out // n)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W + diag(D_1, ... D_N)."""
        return DenseMap(frozen.weight + on_diagonal(tensors["blocks"]), frozen.bias)

    def stack_key(self, group: Group) -> Hashable:
        """One side."""
        return int(group["side"])


registry.register(Diablo())
