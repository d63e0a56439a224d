"""Comp-LoRA: LoRA in the complement of a weight's main directions.

y + (alpha / r) x Q A B P. P and Q take out the k leading singular directions of the frozen W, on
its output and on its input side: what the backbone does most strongly is left as it is. k is the
smallest number of directions that hold the share `energy` of W's squared singular values, at most
all but one. The factors are projected in place of the activations, which is the same and costs
r k d per step and no token. A is drawn kaiming-uniform(a = sqrt 5) and B is zero.

No code was released, and the paper's choice of k could not be checked: the energy of 0.9 and
projecting both sides are this project's.
"""

from collections.abc import Hashable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.frozen_maps import Svd
from autopeft.backbone.products import lane_product, product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, Place, Stack, size_class
from autopeft.methods.lora import LoraOperator, kaiming, scaling
from autopeft.space.schema import MethodSchema, ParameterSchema

SIDES = ("both", "output", "input")


class CompLoraOperator(LoraOperator):
    """Stacked A [k, d_in, r] and B [k, r, d_out]; padded ranks stay zero, as in LoRA."""

    products_only = False

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._group = stack.groups[0]

    @cached_property
    def _n_main(self) -> int:
        """k, once and on the CPU: read off a device, it would make every step wait."""
        return n_main(self.frozen.svd_on_cpu().values, float(self._group["energy"]))

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(alpha / r) x (Q A) (B P)."""
        svd, side = self.frozen.svd(self.A), str(self._group["side"])
        a, b = complement(self.A, self.B, svd, self._n_main, side)
        low = lane_product(self.dropout(x, call).flatten(1, 2), a)
        scaled = low * self.scale.to(low.dtype).view(-1, 1, 1)
        return lane_product(scaled, b).view(*x.shape[:3], -1)


def complement(a: Tensor, b: Tensor, svd: Svd, k: int, side: str) -> tuple[Tensor, Tensor]:
    """Q A and B P of A [..., d_in, r] and B [..., r, d_out]."""
    with torch.autocast(a.device.type, enabled=False):
        if side != "output":
            a = a - _along(a.mT, svd.inputs[:, :k]).mT
        if side != "input":
            b = b - _along(b, svd.outputs[:, :k])
    return a, b


def _along(rows: Tensor, main: Tensor) -> Tensor:
    """The part of rows [..., d] along directions [d, k]."""
    return product(product(rows, main), main.T)


def n_main(values: Tensor, energy: float) -> int:
    """The smallest number of leading singular values with this share of all squares."""
    shares = values.double().square().cumsum(0)
    held = int((shares < energy * shares[-1]).sum()) + 1 if energy > 0.0 else 0
    return min(held, len(values) - 1)


class CompLora(OnLinearMaps):
    """The method `comp_lora`."""

    operator_type = CompLoraOperator
    schema = MethodSchema(
        name="comp_lora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
            ParameterSchema("energy", "float", default=0.9, minimum=0.0, maximum=0.999),
            ParameterSchema("side", "str", default="both", choices=SIDES),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Comp-LoRA (complementary subspace low-rank adaptation of CLIP); no code released"
    identity = "exact"
    peft_type = "LORA"

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out)."""
        return int(group["rank"]) * (place.d_in + place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, and what the factor makes of it; the weight's decomposition beside them."""
        shortest = min(place.d_in, place.d_out)
        return Kept(int(group["rank"]), shared=shortest * (place.d_in + place.d_out + 1))

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A uniform in +-1/sqrt(d_in), B zero."""
        rank = int(group["rank"])
        return {
            "A": kaiming(place.d_in, (place.d_in, rank), start.draw("A")),
            "B": torch.zeros(rank, place.d_out),
        }

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """Q A and (alpha / r) B P."""
        svd, side = frozen.svd(), str(group["side"])
        k = n_main(svd.values, float(group["energy"]))
        a, b = complement(tensors["A"], tensors["B"], svd, k, side)
        return a, scaling(group) * b

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack, where the same directions are left alone."""
        return size_class(int(group["rank"])), float(group["energy"]), str(group["side"])


registry.register(CompLora())
