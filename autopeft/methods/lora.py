"""LoRA: a low-rank additive update of a linear map (arXiv 2106.09685).

y + (alpha / r) * B(A(dropout(x))); A is drawn kaiming-uniform(a = sqrt 5), as HF `peft` draws it,
and B is zero.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Group
from autopeft.methods.base import (
    Call,
    Kept,
    LaneDropout,
    LaneOperator,
    Place,
    Start,
    Unfolded,
    linear_places,
    registry,
    size_class,
)
from autopeft.space.schema import MethodSchema, ParameterSchema


class LoraOperator(LaneOperator):
    """Stacked A [k, d_in, r] and B [k, r, d_out].

    Padded ranks stay zero: A's padded columns meet B's zero rows and the other way round, so both
    gradients are exactly zero.
    """

    products_only = True

    A: Tensor
    B: Tensor
    scale: Tensor

    def __init__(
        self,
        name: str,
        members: Sequence[int],
        groups: Sequence[Group],
        tensors: Sequence[Mapping[str, Tensor]],
    ) -> None:
        super().__init__(name, members, tensors)
        scales = [float(group["alpha"]) / int(group["rank"]) for group in groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout(name, [float(group["dropout"]) for group in groups])

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(alpha / r) * x A B per lane."""
        x = self.dropout(x, call)
        low = torch.bmm(x.flatten(1, 2), self.A)
        scaled = low * self.scale.to(low.dtype).view(-1, 1, 1)
        return torch.bmm(scaled, self.B).view(*x.shape[:3], -1)


class Lora(Unfolded):
    """The method `lora`."""

    schema = MethodSchema(
        name="lora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685"
    identity = "exact"
    peft_type = "LORA"

    def carried_by(self, anatomy: Anatomy) -> str:
        """Any backbone with linear sites carries it."""
        return "" if anatomy.roles else "it has no linear sites"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and role."""
        return linear_places(group, anatomy)

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out)."""
        return int(group["rank"]) * (place.d_in + place.d_out)

    training_count = count

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x A, and x."""
        return Kept(int(group["rank"]))

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A uniform in +-1/sqrt(d_in) (kaiming-uniform with a = sqrt 5), B zero."""
        rank = int(group["rank"])
        a = torch.empty(place.d_in, rank)
        a.uniform_(
            -1.0 / math.sqrt(place.d_in), 1.0 / math.sqrt(place.d_in), generator=start.draw("A")
        )
        return {"A": a, "B": torch.zeros(rank, place.d_out)}

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack."""
        return size_class(int(group["rank"]))

    def operator(
        self,
        name: str,
        place: Place,
        members: Sequence[int],
        groups: Sequence[Group],
        tensors: Sequence[Mapping[str, Tensor]],
    ) -> LaneOperator:
        """The stacked operator."""
        return LoraOperator(name, members, groups, tensors)


registry.register(Lora())
