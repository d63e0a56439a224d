"""(IA)^3: activations are scaled, channel by channel (Liu et al. 2022, arXiv 2205.05638).

At `down`, the input is scaled, which are the FFN's inner activations; at every other site the
output, its bias included. The paper scales keys, values and inner activations. What is trained of
a factor is its distance from 1. Scaling the input of `down` takes a second product with W, so that
it is exact beside whatever else sits there.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneOperator, Place, Stack
from autopeft.space.schema import MethodSchema, Scalar

READS_INPUT = ("down",)
"""Sites whose input is scaled in place of their output."""


class OutputScale(LaneOperator):
    """Stacked distances from 1, `change` [k, d_out]; there is no padding."""

    change: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(l - 1) y; keeps a copy of y."""
        return y.clone() * self.change[:, None, None]


class InputScale(LaneOperator):
    """Stacked distances from 1, `change` [k, d_in]; there is no padding."""

    change: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """((l - 1) x) W."""
        return self.frozen.product(x * self.change[:, None, None])


class Ia3(OnLinearMaps):
    """The method `ia3`."""

    schema = MethodSchema(
        name="ia3",
        size="",
        parameters=(),
        sites=LINEAR_ROLES,
        default_sites=("key", "value", "down"),
    )
    source = "Liu et al. 2022, (IA)^3 in T-Few, arXiv 2205.05638"
    identity = "exact"
    peft_type = "IA3"
    peft_fill: float | None = 1.0

    def count(self, group: Group, place: Place) -> int:
        """d_out; d_in at `down`."""
        return place.d_in if place.site in READS_INPUT else place.d_out

    def frozen_work(self, group: Group, place: Place) -> int:
        """W once more where the input is scaled."""
        return place.d_in * place.d_out if place.site in READS_INPUT else 0

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """The input where it is scaled, else a copy of the output."""
        reads = place.site in READS_INPUT
        return Kept(exact=0 if reads else place.d_out, reads=reads, reads_exactly=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Factors of 1."""
        return {"change": torch.zeros(self.count(group, place))}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W with its rows scaled; or its columns, and its bias."""
        factors = 1.0 + tensors["change"]
        if place.site in READS_INPUT:
            return DenseMap(factors[:, None] * frozen.weight, frozen.bias)
        bias = None if frozen.bias is None else frozen.bias * factors
        return DenseMap(frozen.weight * factors, bias)

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """`IA3Config` has nothing to set."""
        return {} if config["init_ia3_weights"] else None

    def peft_module_settings(
        self, modules: Mapping[str, tuple[Group, Place]]
    ) -> Mapping[str, object]:
        """Of `IA3Config`: the maps whose input is scaled."""
        read = [name for name, (_, place) in modules.items() if place.site in READS_INPUT]
        return {"feedforward_modules": sorted(read)}

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """The factors themselves, as a row for the input and as a column for the output."""
        factors = 1.0 + tensors["change"]
        return {"ia3_l": factors.unsqueeze(0 if place.site in READS_INPUT else 1)}

    def operator(self, stack: Stack) -> LaneOperator:
        """The stacked operator."""
        kind = InputScale if stack.place.site in READS_INPUT else OutputScale
        return kind(stack)


registry.register(Ia3())
