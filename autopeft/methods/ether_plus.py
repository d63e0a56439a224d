"""ETHER+: relaxed reflections of a linear map's input, and of its output (arXiv 2405.20271).

y' = (x H) W H' + b, H and H' block-diagonal with blocks I - u u^T + v v^T, u and v trained
directions (eq. 4). At v = -u, where training starts, H is the identity; however long it trains,
each block stays within distance 2 of it. With `both_sides` off there is no H'.

The released code (mwbini/ether) cuts W into blocks of rows and applies each H to whole rows; here,
as in the paper, H is block-diagonal. H' acts on what the frozen map and the methods before it in
the alphabet have made, without the bias. Once trained it is LoRA of rank 2 n, or 4 n.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.ether import blocks_within, directions
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneOperator, Place
from autopeft.methods.reflections import along, columns
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class EtherPlusOperator(LaneOperator):
    """Stacked directions u, v [k, n, b] of the input, and u_out, v_out of the output, if any.

    Lanes have one number of blocks: there is no padding.
    """

    u: Tensor
    v: Tensor
    u_out: Tensor
    v_out: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """p + (z + p) (H' - I), p = x (H - I) W, and z the output without its bias."""
        moved = self.frozen.product(change(x.flatten(1, 2), self.u, self.v))
        if "u_out" in self.stacked_names:
            bias = self.frozen.bias
            made = y.flatten(1, 2) + (moved if bias is None else moved - bias)
            moved = moved + change(made, self.u_out, self.v_out)
        return moved.view(*x.shape[:3], -1)


def change(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """x (H - I), [k, R, n b]."""
    return along(x, v) - along(x, u)


class EtherPlus(OnLinearMaps):
    """The method `ether_plus`."""

    operator_type = EtherPlusOperator
    schema = MethodSchema(
        name="ether_plus",
        size="blocks",
        parameters=(
            ParameterSchema("blocks", "int", minimum=1),
            ParameterSchema("both_sides", "bool", default=True),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Bini et al. 2024, ETHER, arXiv 2405.20271; mwbini/ether"
    identity = "exact"
    reads_output = True
    peft_type = "LORA"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Numbers that divide input and output into blocks of two or more."""
        return blocks_within(place.d_in, place.d_out) if name == "blocks" else None

    def count(self, group: Group, place: Place) -> int:
        """2 d_in, and 2 d_out on both sides."""
        return 2 * (place.d_in + (place.d_out if group["both_sides"] else 0))

    def frozen_work(self, group: Group, place: Place) -> int:
        """W once more; every direction is met twice."""
        return place.d_in * place.d_out + self.count(group, place)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x and what is reflected of the output, and their inner products with the directions."""
        blocks = 2 * int(group["blocks"])
        inner = 2 * blocks + place.d_out if group["both_sides"] else blocks
        return Kept(exact=inner, reads_exactly=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Random directions u, and v = -u."""
        blocks = int(group["blocks"])
        u = directions(blocks, place.d_in, start.draw("u"))
        if not group["both_sides"]:
            return {"u": u, "v": -u}
        out = directions(blocks, place.d_out, start.draw("u_out"))
        return {"u": u, "v": -u, "u_out": out, "v_out": -out}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """H W H'."""
        own = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
        weight = frozen.weight + change(frozen.weight.T.unsqueeze(0), own["u"], own["v"])[0].T
        if group["both_sides"]:
            weight = weight + change(weight.unsqueeze(0), own["u_out"], own["v_out"])[0]
        return DenseMap(weight, frozen.bias)

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """(H - I) W as its directions and what W makes of them; behind them, H W (H' - I)."""
        u, v = columns(tensors["u"]), columns(tensors["v"])
        a, b = torch.cat([v, -u], 1), torch.cat([v, u], 1).T @ frozen.weight
        if not group["both_sides"]:
            return a, b
        weight = frozen.weight + a @ b
        u, v = columns(tensors["u_out"]), columns(tensors["v_out"])
        return torch.cat([a, weight @ v, -(weight @ u)], 1), torch.cat([b, v.T, u.T])

    def stack_key(self, group: Group) -> Hashable:
        """One number of blocks, on the same sides."""
        return group["blocks"], group["both_sides"]


registry.register(EtherPlus())
