"""MELoRA: LoRA made of small ones side by side (arXiv 2402.17263).

Input and output are cut into n equal parts; part i of the output gets (alpha / r) B_i A_i times
part i of the input. The change of W is block-diagonal and of rank n r, with the parameters of rank
r. A_i is drawn kaiming-uniform(a = sqrt 5) and B_i is zero, as released.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.methods.lora import kaiming, scaling
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class MeloraOperator(LaneOperator):
    """Stacked A [k, n, d_in / n, r] and B [k, n, r, d_out / n]; all lanes have the same n.

    Padded ranks stay zero, as in LoRA.
    """

    A: Tensor
    B: Tensor
    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        scales = [scaling(group) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(alpha / r) x_i A_i B_i, the parts side by side."""
        n = self.A.shape[1]
        parts = in_parts(self.dropout(x, call), n)
        low = lane_product(parts, self.A.flatten(0, 1)) * self._scales(n)
        return side_by_side(lane_product(low, self.B.flatten(0, 1)), x)

    def _scales(self, n: int) -> Tensor:
        return self.scale.repeat_interleave(n).view(-1, 1, 1)


def in_parts(x: Tensor, n: int) -> Tensor:
    """[k, B, T, d] -> [k * n, B * T, d / n]."""
    return x.reshape(len(x), -1, n, x.shape[3] // n).transpose(1, 2).flatten(0, 1)


def side_by_side(parts: Tensor, x: Tensor) -> Tensor:
    """[k * n, B * T, d / n] -> [k, B, T, d], k, B and T those of x."""
    lanes = parts.view(len(x), -1, *parts.shape[1:]).transpose(1, 2)
    return lanes.reshape(*x.shape[:3], -1)


def on_diagonal(blocks: Tensor) -> Tensor:
    """The matrix with blocks [n, h, w] on its diagonal, [n h, n w]."""
    n, h, w = blocks.shape
    whole = blocks.new_zeros(n, h, n, w)
    whole[range(n), :, range(n)] = blocks
    return whole.view(n * h, n * w)


class Melora(OnLinearMaps):
    """The method `melora`."""

    operator_type = MeloraOperator
    schema = MethodSchema(
        name="melora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("parts", "int", default=4, minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Ren et al. 2024, MELoRA, arXiv 2402.17263; ChasonShi/MELoRA"
    identity = "exact"
    peft_type = "LORA"

    def legal(self, name: str, place: Place) -> tuple[Scalar, ...] | None:
        """Parts divide both widths."""
        return divisors(place.d_in, place.d_out) if name == "parts" else None

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out), whatever n."""
        return int(group["rank"]) * (place.d_in + place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x in parts, which is a copy, and what the A_i make of it."""
        return Kept(place.d_in + int(group["rank"]) * int(group["parts"]), reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A_i uniform in +-1/sqrt(d_in / n), B_i zero."""
        rank, n = int(group["rank"]), int(group["parts"])
        width = place.d_in // n
        return {
            "A": kaiming(width, (n, width, rank), start.draw("A")),
            "B": torch.zeros(n, rank, place.d_out // n),
        }

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """diag(A_1, ... A_n) and (alpha / r) diag(B_1, ... B_n), of rank n r."""
        return on_diagonal(tensors["A"]), scaling(group) * on_diagonal(tensors["B"])

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack, where there are as many parts."""
        return size_class(int(group["rank"])), int(group["parts"])


registry.register(Melora())
