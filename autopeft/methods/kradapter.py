"""KRAdapter: a change of W that is a Khatri-Rao product of two factors (ICCV 2025).

Let m be the shorter and M the longer side of W, r = floor(sqrt(m)) and c the smallest number of at
least r with r c >= M. Every entry i of the shorter side has a row that is the product of its rows
of V [m, c] and U [m, r],

    K[i, p r + q] = V[i, p] U[i, q],    cut to [m, M],

and the change of W is `scale` times K, so that it has a high rank with m (r + c) parameters; there
is no knob but the scale. U is zero, V is kaiming-uniform, as released. Where W is square, K's rows
are outputs. (The README's `merge` forgets to transpose; here W + scale K is what is trained.)
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.dense import DenseOperator, dense_kept
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneDropout, Place, Stack
from autopeft.space.schema import MethodSchema, ParameterSchema


class KrOperator(DenseOperator):
    """Stacked V [k, m, c] and U [k, m, r]: all lanes have the same, there is no padding."""

    V: Tensor
    U: Tensor
    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._place = stack.place
        scales = stack.floats("scale")
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def change(self, *trained: Tensor) -> Tensor:
        """scale K, or its transpose."""
        v, u = trained
        return khatri_rao(v, u * self.scale[:, None, None], self._place)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x times the change."""
        return super().delta(self.dropout(x, call), y, call)


def khatri_rao(v: Tensor, u: Tensor, place: Place) -> Tensor:
    """The change of W, [..., d_in, d_out], of V [..., m, c] and U [..., m, r]."""
    whole = (v.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2)
    rows = whole[..., : max(place.d_in, place.d_out)]
    return rows.transpose(-1, -2) if place.d_out <= place.d_in else rows


def widths(place: Place) -> tuple[int, int, int]:
    """m, r and c."""
    shorter, longer = sorted((place.d_in, place.d_out))
    r = math.isqrt(shorter)
    return shorter, r, max(r, -(-longer // r))


class KrAdapter(OnLinearMaps):
    """The method `kradapter`."""

    operator_type = KrOperator
    schema = MethodSchema(
        name="kradapter",
        size="",
        parameters=(
            ParameterSchema("scale", "float", default=2.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Albert et al. 2025, KRAdapter, ICCV 2025; PaulAlbert31/KRAdapter"
    identity = "exact"

    def count(self, group: Group, place: Place) -> int:
        """m (r + c)."""
        shorter, r, c = widths(place)
        return shorter * (r + c)

    def frozen_work(self, group: Group, place: Place) -> int:
        """The change is as large as W."""
        return place.d_in * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x."""
        return dense_kept(place)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """V uniform in +-sqrt(6 / c) (kaiming-uniform), U zero."""
        shorter, r, c = widths(place)
        bound = math.sqrt(6.0 / c)
        v = torch.empty(shorter, c).uniform_(-bound, bound, generator=start.draw("V"))
        return {"V": v, "U": torch.zeros(shorter, r)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W + scale K."""
        change = khatri_rao(tensors["V"], tensors["U"], place)
        return DenseMap(frozen.weight + float(group["scale"]) * change, frozen.bias)


registry.register(KrAdapter())
