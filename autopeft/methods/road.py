"""RoAd: pairs of a linear map's outputs are rotated and scaled (arXiv 2409.00119).

y' = R y (eq. 4), the output's bias included. Every pair (p, q) of outputs becomes

    p' = a_1 cos(t_1) p - b_1 sin(u_1) q        q' = a_2 cos(t_2) q + b_2 sin(u_2) p

RoAd_1 has one angle and one scale for a pair, RoAd_2 one of each for an output, RoAd_4 one of each
for an entry of the pair's 2 x 2 matrix. Angles start at 0 and scales at 1, where R is the
identity. Pairs are those of HF `peft`: within a group of g outputs, output i goes with output
i + g/2; g = 2 are the paper's own neighbours, g = 64 is `peft`'s default.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import Call, LaneOperator, Place, Stack
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar

VARIANTS = (1, 2, 4)


class RoadOperator(LaneOperator):
    """Stacked angles theta [k, m] and scales alpha [k, m], of one variant and one group size.

    Lanes of one variant have tensors of one size: there is no padding.
    """

    theta: Tensor
    alpha: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        group = stack.groups[0]
        self._variant, self._width = int(group["variant"]), int(group["group_size"])

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(R - I) y; keeps a copy of y."""
        own, across = entries(self.theta, self.alpha, self._variant, self._width)
        return turned(y.clone(), own[:, None, None] - 1.0, across[:, None, None])


def entries(theta: Tensor, alpha: Tensor, variant: int, width: int) -> tuple[Tensor, Tensor]:
    """R's entries on and off the diagonal, each [..., groups, 2, width / 2].

    Args:
        theta: Angles [..., m].
        alpha: Scales [..., m].
        variant: One of `VARIANTS`.
        width: Outputs of a group.
    """
    half = width // 2
    if variant == 1:
        angles, scales = (_split(each, 1, half) for each in (theta, alpha))
        angles, scales = (each.expand(*each.shape[:-2], 2, half) for each in (angles, scales))
        return scales * angles.cos(), scales * angles.sin()
    if variant == 2:
        angles, scales = (_split(each, 2, half) for each in (theta, alpha))
        return scales * angles.cos(), scales * angles.sin()
    angles, scales = (_split(each, 2, 2, half) for each in (theta, alpha))
    (scale, other_scale), (angle, other_angle) = scales.unbind(-3), angles.unbind(-3)
    return scale * angle.cos(), other_scale * other_angle.sin()


def _split(tensor: Tensor, *sizes: int) -> Tensor:
    """[..., m] -> [..., groups, *sizes]."""
    return tensor.reshape(*tensor.shape[:-1], -1, *sizes)


def turned(y: Tensor, own: Tensor, across: Tensor) -> Tensor:
    """The pairs of y [..., d_out] under entries on and off the diagonal, see `entries`."""
    first, second = _split(y, *own.shape[-2:]).unbind(-2)
    pairs = (
        own[..., 0, :] * first - across[..., 0, :] * second,
        own[..., 1, :] * second + across[..., 1, :] * first,
    )
    return torch.stack(pairs, dim=-2).flatten(-3)


class Road(OnLinearMaps):
    """The method `road`."""

    operator_type = RoadOperator
    schema = MethodSchema(
        name="road",
        size="variant",
        parameters=(
            ParameterSchema("variant", "int", minimum=1, maximum=4),
            ParameterSchema("group_size", "int", default=2, minimum=2),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Liao and Monz 2024, 3-in-1: 2D Rotary Adaptation, arXiv 2409.00119"
    identity = "exact"
    peft_type = "ROAD"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """The variants there are; even group sizes that divide the output."""
        if name == "variant":
            return VARIANTS
        return tuple(each for each in divisors(place.d_out) if each % 2 == 0)

    def count(self, group: Group, place: Place) -> int:
        """v d_out: v / 2 angles and scales each."""
        return int(group["variant"]) * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """A copy of the output."""
        return Kept(exact=place.d_out, reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Angles 0, scales 1."""
        number = self.count(group, place) // 2
        return {"theta": torch.zeros(number), "alpha": torch.ones(number)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W R^T and R b."""
        width = int(group["group_size"])
        r = entries(tensors["theta"], tensors["alpha"], int(group["variant"]), width)
        bias = None if frozen.bias is None else turned(frozen.bias, *r)
        return DenseMap(turned(frozen.weight, *r), bias)

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Of `RoadConfig`."""
        return {"variant": f"road_{group['variant']}", "group_size": group["group_size"]}

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """Of `RoadConfig`, at its usual start."""
        if not config["init_weights"]:
            return None
        variant = int(str(config["variant"]).removeprefix("road_"))
        return {"variant": variant, "group_size": int(str(config["group_size"]))}

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """The same, under other names."""
        return {"road_theta": tensors["theta"], "road_alpha": tensors["alpha"]}

    def stack_key(self, group: Group) -> Hashable:
        """One variant, one group size."""
        return group["variant"], group["group_size"]


registry.register(Road())
