"""SSF: a linear map's outputs are scaled and shifted, channel by channel (arXiv 2210.08823).

(1 + g) y + b, with g and b zero at first; the paper starts its scales and shifts at random near 1
and 0. It puts them behind norms too, which the method `norm` trains. A key's outputs are left out:
without rotary positions a shift adds the same number to all of a query's scores.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import Call, DenseMap, Kept, LaneOperator, Place, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.space.schema import MethodSchema


class SsfOperator(LaneOperator):
    """Stacked `scale` and `shift` [k, d_out]; there is no padding."""

    scale: Tensor
    shift: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """g y + b; keeps a copy of y."""
        return y.clone() * self.scale[:, None, None] + self.shift[:, None, None]


class Ssf(OnLinearMaps):
    """The method `ssf`."""

    schema = MethodSchema(
        name="ssf",
        size="",
        parameters=(),
        sites=tuple(role for role in LINEAR_ROLES if role != "key"),
        default_sites=("query", "value", "output", "up", "down"),
    )
    source = "Lian et al. 2022, Scaling & Shifting Your Features, arXiv 2210.08823"
    identity = "exact"
    peft_type = ""

    def count(self, group: Group, place: Place) -> int:
        """2 d_out."""
        return 2 * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """A copy of the output."""
        return Kept(place.d_out, reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Zeros."""
        return {"scale": torch.zeros(place.d_out), "shift": torch.zeros(place.d_out)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W with its columns scaled; its bias scaled and shifted."""
        factors, shift = 1.0 + tensors["scale"], tensors["shift"]
        bias = shift if frozen.bias is None else frozen.bias * factors + shift
        return DenseMap(frozen.weight * factors, bias)

    def stack_key(self, group: Group) -> Hashable:
        """All stack."""
        return ()

    def operator(
        self,
        name: str,
        place: Place,
        members: Sequence[int],
        groups: Sequence[Group],
        tensors: Sequence[Mapping[str, Tensor]],
    ) -> LaneOperator:
        """The stacked operator."""
        return SsfOperator(name, members, tensors)


registry.register(Ssf())
