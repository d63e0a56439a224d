"""HUT: a weight is multiplied, entry by entry, by one plus a low-rank matrix (arXiv 2409.13501).

W' = W * (1 + (alpha / r) A B), the products with W entry by entry; A is drawn kaiming-uniform(a =
sqrt 5), B is zero. That is `hira` with a scale, whose operator it has.

Verified, by the paper's abstract: W' is made of W itself and not added to it, by a Hadamard
product with two low-rank matrices, without a cost once merged. Not verified: the equation, as no
code is public and the paper's text could not be read. The form above is the simplest that the
abstract allows; scale and initial values are LoRA's. Summaries of the paper put W between two
such factors, each to the power r, and scale and shift the outputs: shapes, what the powers mean
and initial values are not said, so none of that is here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, registry
from autopeft.methods.hira import Hira, HiraOperator
from autopeft.methods.lane_operator import Place, Stack
from autopeft.methods.lora import scaling
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class HutOperator(HiraOperator):
    """HiRA's with a scale [k] of each lane."""

    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        scales = [scaling(group) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))

    def change(self, *trained: Tensor) -> Tensor:
        """W * (s A B)."""
        a, b = trained
        return super().change(a, b * self.scale.to(b.dtype).view(-1, 1, 1))


class Hut(Hira):
    """The method `hut`."""

    operator_type = HutOperator
    schema = MethodSchema(
        name="hut",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=Hira.schema.sites,
        default_sites=Hira.schema.default_sites,
    )
    source = "Zhang, Zhou and Chen 2024, HUT, arXiv 2409.13501: by its abstract alone"

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W * (1 + s A B)."""
        return super().merged(group, place, _unscaled(group, tensors), frozen)

    def peft_trains(self, group: Group) -> str:
        """HiRA, which has no scale."""
        return "" if scaling(group) == 1.0 else "without HUT's scale alpha / rank"

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """None: what a `HiraConfig` trains is `hira`."""
        return None

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """HiRA's, the scale in B."""
        return super().peft_tensors(group, place, _unscaled(group, tensors), frozen)


def _unscaled(group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same change without a scale: it is in B."""
    return {**tensors, "B": scaling(group) * tensors["B"]}


registry.register(Hut())
