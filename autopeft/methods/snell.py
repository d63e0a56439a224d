"""SNELL: a sparse change of W whose entries are distances of trained vectors (arXiv 2411.01800).

y + x S(D), D_ij = c (|p_i - q_j| - |p'_i - q'_j|): every input i and every output j has a trained
vector of r numbers in each of two kernels, c = 0.1. So D has a high rank, at 2 r (d_in + d_out)
trained scalars. S keeps the entries of the largest magnitude, the share 1 - `sparsity` of each
map's, and draws all of them towards zero by the magnitude t of the next: sign(D) max(|D| - t, 0),
t not being a way for gradients, as released.

The released code (ssfgunner/SNELL) multiplies D with the magnitudes above t, which jumps where an
entry comes to be kept: rounding would then decide what a lane learns. Vectors are drawn uniform
within 1 / sqrt(d r), as released. The two kernels cancel in expectation alone, so that training
starts near the backbone and not at it. The layer-wise budgets of SNELLA are not done.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.dense import DenseOperator
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Place, Stack, size_class
from autopeft.space.schema import MethodSchema, ParameterSchema

SCALE = 0.1
MOST_SPARSE = 0.999


class SnellOperator(DenseOperator):
    """Stacked vectors of inputs [k, 2, d_in, r] and of outputs [k, 2, d_out, r].

    Padded numbers are zero on both sides, and so are their differences: no gradient.
    """

    inputs: Tensor
    outputs: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._sparsity = float(stack.groups[0]["sparsity"])

    def change(self, *trained: Tensor) -> Tensor:
        """S(D)."""
        inputs, outputs = trained
        return sparse(distances(inputs, outputs), self._sparsity)


def distances(inputs: Tensor, outputs: Tensor) -> Tensor:
    """D [k, d_in, d_out] of vectors [k, 2, d, r]."""
    mode = "donot_use_mm_for_euclid_dist"  # products would lose what is near zero
    first, second = torch.cdist(inputs, outputs, compute_mode=mode).unbind(1)
    return SCALE * (first - second)


def sparse(change: Tensor, sparsity: float) -> Tensor:
    """Every lane's matrix [k, d_in, d_out] with its smallest entries at zero, see above."""
    sizes = change.detach().abs().flatten(1)
    dropped = round(sparsity * sizes.shape[1])
    if dropped == 0:
        return change
    least = sizes.kthvalue(dropped, dim=1).values.view(-1, 1, 1)
    return change.sign() * (change.abs() - least).relu()


class Snell(OnLinearMaps):
    """The method `snell`."""

    operator_type = SnellOperator
    schema = MethodSchema(
        name="snell",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("sparsity", "float", default=0.9, minimum=0.0, maximum=MOST_SPARSE),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Shen et al. 2024, SNELL, arXiv 2411.01800; ssfgunner/SNELL"
    identity = "near: the two kernels are drawn apart, and cancel in expectation alone"

    def count(self, group: Group, place: Place) -> int:
        """2 r (d_in + d_out)."""
        return 2 * int(group["rank"]) * (place.d_in + place.d_out)

    def frozen_work(self, group: Group, place: Place) -> int:
        """The change is as large as W."""
        return place.d_in * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x; both kernels' distances and D while it runs."""
        return Kept(weights=4 * place.d_in * place.d_out, reads_exactly=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Uniform vectors."""
        rank = int(group["rank"])
        return {
            name: torch.empty(2, width, rank).uniform_(
                -((width * rank) ** -0.5), (width * rank) ** -0.5, generator=start.draw(name)
            )
            for name, width in (("inputs", place.d_in), ("outputs", place.d_out))
        }

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W + S(D)."""
        both = (tensors[name].unsqueeze(0) for name in ("inputs", "outputs"))
        change = sparse(distances(*both), float(group["sparsity"]))[0]
        return DenseMap(frozen.weight + change, frozen.bias)

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack, of one sparsity."""
        return size_class(int(group["rank"])), float(group["sparsity"])


registry.register(Snell())
