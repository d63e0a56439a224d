"""ETHER: a linear map's input is reflected, block by block (arXiv 2405.20271).

y' = (x H) W + b, H block-diagonal with n blocks I - 2 u u^T, u a trained direction each (eq. 2). A
reflection is as far from the identity as an orthogonal map can be in one direction, and no step
makes it any further: training bears learning rates of 1e-3 to 1e-2. There is no start at which it
is the identity; u is drawn kaiming-uniform, as released.

The released code (mwbini/ether) cuts W into blocks of rows and applies each reflection to whole
rows; here, as in the paper, H is block-diagonal. `peft` has none of it: its HRA with r = 1 is the
case of one block. Once trained it is LoRA of rank n, -2 U (U^T W) with a unit direction a column.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import Call, LaneOperator, Place
from autopeft.methods.reflections import along, columns
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class EtherOperator(LaneOperator):
    """Stacked directions u [k, n, b]; lanes have one number of blocks: there is no padding."""

    u: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """-2 (x u u^T) W."""
        moved = -2.0 * along(x.flatten(1, 2), self.u)
        return self.frozen.product(moved).view(*x.shape[:3], -1)


def blocks_within(*widths: int) -> tuple[int, ...]:
    """Numbers of equal blocks of two or more that all of some widths can be cut into."""
    return tuple(n for n in divisors(*widths) if min(widths) // n > 1)


def directions(blocks: int, width: int, generator: torch.Generator) -> Tensor:
    """[n, b] kaiming-uniform with a = sqrt 5: uniform within 1 / sqrt(b)."""
    bound = (width // blocks) ** -0.5
    return torch.empty(blocks, width // blocks).uniform_(-bound, bound, generator=generator)


class Ether(OnLinearMaps):
    """The method `ether`."""

    operator_type = EtherOperator
    schema = MethodSchema(
        name="ether",
        size="blocks",
        parameters=(ParameterSchema("blocks", "int", minimum=1),),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Bini et al. 2024, ETHER, arXiv 2405.20271; mwbini/ether"
    identity = "no: every block of the input starts reflected, and stays so"
    peft_type = "LORA"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Numbers that divide the input into blocks of two or more."""
        return blocks_within(place.d_in)

    def count(self, group: Group, place: Place) -> int:
        """d_in, whatever the number of blocks."""
        return place.d_in

    def frozen_work(self, group: Group, place: Place) -> int:
        """W once more; u is met twice."""
        return place.d_in * place.d_out + place.d_in

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, and its inner products with the directions."""
        return Kept(exact=int(group["blocks"]), reads_exactly=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Random directions."""
        return {"u": directions(int(group["blocks"]), place.d_in, start.draw("u"))}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """H W, H symmetric."""
        change = -2.0 * along(frozen.weight.T.unsqueeze(0), tensors["u"].unsqueeze(0))[0].T
        return DenseMap(frozen.weight + change, frozen.bias)

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """-2 U and U^T W."""
        unit = columns(tensors["u"])
        return -2.0 * unit, unit.T @ frozen.weight

    def stack_key(self, group: Group) -> Hashable:
        """One number of blocks."""
        return group["blocks"]


registry.register(Ether())
