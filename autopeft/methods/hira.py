"""HiRA: a low-rank change relative to the frozen weight (Huang et al., ICLR 2025).

W' = W + W * (A B), the product in the middle entry by entry, so that the change has a high rank
although its factors have not. A is drawn kaiming-uniform(a = sqrt 5) and B is zero, as HF `peft`
does it; there is no scale.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.dense import DenseOperator, dense_kept
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneDropout, Place, Stack, size_class
from autopeft.methods.lora import kaiming
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class HiraOperator(DenseOperator):
    """Stacked A [k, d_in, r] and B [k, r, d_out]; padded ranks stay zero, as in LoRA."""

    A: Tensor
    B: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.dropout = LaneDropout.of(stack)

    def change(self, *trained: Tensor) -> Tensor:
        """W * (A B)."""
        a, b = trained
        return lane_product(a, b) * self.frozen.weight.to(a.dtype)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x (W * (A B))."""
        return super().delta(self.dropout(x, call), y, call)


class Hira(OnLinearMaps):
    """The method `hira`."""

    operator_type = HiraOperator
    schema = MethodSchema(
        name="hira",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Huang et al. 2025, HiRA: Hadamard High-Rank Adaptation, ICLR 2025; HF peft's HIRA"
    identity = "exact"
    peft_type = "HIRA"

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out)."""
        return int(group["rank"]) * (place.d_in + place.d_out)

    def frozen_work(self, group: Group, place: Place) -> int:
        """The change is as large as W."""
        return place.d_in * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x."""
        return dense_kept(place)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A uniform in +-1/sqrt(d_in), B zero."""
        rank = int(group["rank"])
        return {
            "A": kaiming(place.d_in, (place.d_in, rank), start.draw("A")),
            "B": torch.zeros(rank, place.d_out),
        }

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W * (1 + A B)."""
        return DenseMap(frozen.weight * (1.0 + tensors["A"] @ tensors["B"]), frozen.bias)

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Of `HiraConfig`, whose pattern of ranks has no effect in peft 0.21."""
        return {"r": group["rank"], "hira_dropout": group["dropout"]}

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """Of `HiraConfig`, at its usual start."""
        if config["init_weights"] is not True:
            return None
        return {"rank": int(str(config["r"])), "dropout": float(str(config["hira_dropout"]))}

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """The same, transposed."""
        return {"hira_A": tensors["A"].T, "hira_B": tensors["B"].T}

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack."""
        return size_class(int(group["rank"]))


registry.register(Hira())
