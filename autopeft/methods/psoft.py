"""PSOFT: the principal part of a weight is rotated within itself (arXiv 2505.11235).

y + (x V_r) (R' - I) S_r U_r^T, with the r largest singular components of the frozen map, whose
inputs are V_r, and R' = diag(a) R diag(b) [r, r]. R = (I - Q) (I + Q)^-1 is a rotation by a
trained skew-symmetric Q, which starts at zero; a and b are trained lengths that start at one. What
is orthogonal to the principal part stays as it is, and so, with `lengths` off, do angles in it.

HF `peft` 0.21 computes the same where `use_cayley_neumann` is off; by default it approximates the
inverse by five terms of a series. Its `psoft_alpha` is a factor that its two frozen matrices take
back again. It is no form for what was trained: it takes its SVD anew when it loads an adapter, and
the signs of singular vectors, which Q depends on, may then be others. Once trained it is LoRA of
the same rank, which has those vectors in it.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product, product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneDropout, LaneOperator, Place, Stack
from autopeft.methods.orthogonal import turn
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class PsoftOperator(LaneOperator):
    """Stacked Q [k, r (r - 1) / 2], the entries above the diagonal, and lengths a, b [k, r].

    Lanes have one rank: there is no padding.
    """

    Q: Tensor
    a: Tensor
    b: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._rank = int(stack.groups[0]["rank"])
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(x V_r) (R' - I) S_r U_r^T; keeps x V_r."""
        svd, rank = self.frozen.svd(self.Q), self._rank
        low = product(self.dropout(x, call).flatten(1, 2), svd.inputs[:, :rank])
        trained = {name: self.get_parameter(name) for name in self.stacked_names}
        made = lane_product(low, within(trained, rank))
        return product(made, (svd.outputs[:, :rank] * svd.values[:rank]).T).view(*x.shape[:3], -1)


def within(tensors: Mapping[str, Tensor], rank: int) -> Tensor:
    """R' - I [..., r, r] of a lane's or of stacked tensors."""
    turned = turn(tensors["Q"], rank)
    if "a" not in tensors:
        return turned
    a, b = tensors["a"].unsqueeze(-1), tensors["b"].unsqueeze(-2)
    one = torch.eye(rank, dtype=turned.dtype, device=turned.device)
    return a * turned * b + one * (a * b - 1.0)


class Psoft(OnLinearMaps):
    """The method `psoft`."""

    operator_type = PsoftOperator
    schema = MethodSchema(
        name="psoft",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=2),
            ParameterSchema("lengths", "bool", default=True),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Wu et al. 2025, PSOFT, arXiv 2505.11235; HF peft's PSOFT"
    identity = "exact"
    peft_type = "LORA"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Ranks up to the map's own."""
        return range(2, min(place.d_in, place.d_out) + 1) if name == "rank" else None

    def count(self, group: Group, place: Place) -> int:
        """r (r - 1) / 2, and 2 r lengths."""
        rank = int(group["rank"])
        return rank * (rank - 1) // 2 + (2 * rank if group["lengths"] else 0)

    def frozen_work(self, group: Group, place: Place) -> int:
        """V_r and U_r, and what of R' is not trained by itself."""
        rank = int(group["rank"])
        return rank * (place.d_in + place.d_out + rank) - self.count(group, place)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x V_r; Q, R and what solves for it; U, S and V, which all lanes share."""
        rank = int(group["rank"])
        shared = min(place.d_in, place.d_out) * (place.d_in + place.d_out + 1)
        return Kept(rank, reads=False, weights=4 * rank * rank, shared=shared)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Q zero, lengths one."""
        rank = int(group["rank"])
        tensors = {"Q": torch.zeros(rank * (rank - 1) // 2)}
        lengths = {"a": torch.ones(rank), "b": torch.ones(rank)}
        return tensors | (lengths if group["lengths"] else {})

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """V_r and (R' - I) S_r U_r^T."""
        svd, rank = frozen.svd(), int(group["rank"])
        outputs = svd.outputs[:, :rank] * svd.values[:rank]
        return svd.inputs[:, :rank], within(tensors, rank) @ outputs.T

    def stack_key(self, group: Group) -> Hashable:
        """One rank, with lengths or without."""
        return group["rank"], group["lengths"]


registry.register(Psoft())
