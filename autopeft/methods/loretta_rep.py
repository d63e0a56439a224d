"""LoRETTA, re-parameterised: LoRA whose factors are tensor trains (arXiv 2402.11417).

y + (alpha / m) x A B, A [d_in, m] and B [m, d_out] of small cores each, m the bottleneck and the
rank that of the trains. Cores are drawn as released, N(0, 1) times a spread that gives A the
variance 1 / (d_in + m); but the released B is drawn too, so that the model starts elsewhere than
the backbone: here B's last core is zero.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.methods.tensor_train import initial_cores, n_entries, product
from autopeft.space.schema import MethodSchema, ParameterSchema


class LorettaRepOperator(LaneOperator):
    """Stacked cores `A_j` and `B_j`, [k, r, k_j, r]; all lanes have one bottleneck.

    Padded ranks stay zero: a core's padded columns meet the next one's padded rows, which are
    zero, and the other way round.
    """

    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._d_in, self._bottleneck = stack.place.d_in, int(stack.groups[0]["bottleneck"])
        scales = [float(group["alpha"]) / self._bottleneck for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(alpha / m) x A B."""
        a = product(cores_of(dict(self.named_parameters()), "A"), self._d_in)
        b = product(cores_of(dict(self.named_parameters()), "B"), self._bottleneck)
        low = lane_product(self.dropout(x, call).flatten(1, 2), a)
        scaled = low * self.scale.to(low.dtype).view(-1, 1, 1)
        return lane_product(scaled, b).view(*x.shape[:3], -1)


def cores_of(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The cores of one train, in order."""
    numbers = (j for j in range(len(tensors)) if f"{name}_{j}" in tensors)
    return [tensors[f"{name}_{j}"] for j in numbers]


class LorettaRep(OnLinearMaps):
    """The method `loretta_rep`."""

    operator_type = LorettaRepOperator
    schema = MethodSchema(
        name="loretta_rep",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("bottleneck", "int", default=8, minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Yang et al. 2024, LoRETTA, arXiv 2402.11417; yifanycc/loretta"
    identity = "exact"
    peft_type = "LORA"

    def count(self, group: Group, place: Place) -> int:
        """Entries of both trains, sums of r_(j-1) k_j r_j."""
        rank, bottleneck = int(group["rank"]), int(group["bottleneck"])
        into = n_entries(place.d_in, bottleneck, rank)
        return into + n_entries(bottleneck, place.d_out, rank)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, and what the first factor makes of it; both factors while it runs."""
        bottleneck = int(group["bottleneck"])
        return Kept(bottleneck, weights=bottleneck * (place.d_in + place.d_out))

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A's cores drawn, B's too but for the last, which is zero."""
        rank, bottleneck, draw = int(group["rank"]), int(group["bottleneck"]), start.draw
        return {
            **initial_cores("A", place.d_in, bottleneck, rank, draw, zero=False),
            **initial_cores("B", bottleneck, place.d_out, rank, draw, zero=True),
        }

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """A and (alpha / m) B."""
        bottleneck = int(group["bottleneck"])
        a = product(cores_of(tensors, "A"), place.d_in)
        b = product(cores_of(tensors, "B"), bottleneck)
        return a, float(group["alpha"]) / bottleneck * b

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack, where the bottleneck is the same."""
        return size_class(int(group["rank"])), int(group["bottleneck"])


registry.register(LorettaRep())
