"""What serial, parallel and Adapter+ adapters share: a bottleneck with an activation.

f(z) = scale * (act(dropout(z) D + b_D) U + b_U), D [d, m], U [m, d]. They differ in what z is, and
in how the paper of the space (AutoPEFT) initialises them.

LLM-Adapters (arXiv 2304.01933) and others place them after, or beside, attention, the FFN or
both: `sites: [attention]`, `[ffn]` or `[attention, ffn]`. With `scaling: scalar` or `channel`, a
factor s, or one for every channel, is trained beside `scale` (arXiv 2406.06820). It starts at 1,
and is folded into U and b_U once training ends. `linear_adapter` sits on single linear maps.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.anatomy import SUBLAYERS, Anatomy
from autopeft.backbone.pointwise import pointwise
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import Kept
from autopeft.methods.inherited import Unchosen, sublayer_places
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.space.schema import MethodSchema, ParameterSchema

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "silu": partial(pointwise, functional.silu),
}
"""All are zero at zero, which is what keeps padded bottlenecks silent."""
OF_OUTPUT = ("relu", "tanh")
"""Those whose gradient is a function of their output."""

SCALINGS = ("fixed", "scalar", "channel")
"""What is trained of the scale: nothing, one factor, or one for every channel."""


class BottleneckOperator(LaneOperator):
    """Stacked D [k, d, m], b_D [k, m], U [k, m, d], b_U [k, d]; one activation for all members.

    Where the scale is trained, stacked `learned_scale` [k, 1 or d].

    Padded widths stay zero: their activation is act(0) = 0, so U's padded rows get no gradient,
    and zero rows of U give none to D and b_D.

    It reads the sub-layer's input (parallel), or its output (serial, `OnOutputs`).
    """

    reads_y = False
    hook: Literal["sublayer", "output"] = "sublayer"
    products_only = True

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    scale: Tensor
    learned_scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.activation = ACTIVATIONS[str(stack.groups[0]["activation"])]
        scales = [float(dict(group.settings).get("scale", 1.0)) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """scale * f(y) for the serial adapter, scale * f(x) for the parallel one."""
        z = self.dropout(y if self.reads_y else x, call)
        hidden = lane_product(z.flatten(1, 2), self.down, self.down_bias)
        out = lane_product(self.activation(hidden), self.up, self.up_bias)
        out = out * self.scale.to(out.dtype).view(-1, 1, 1)
        if "learned_scale" in self.stacked_names:
            out = out * self.learned_scale.unsqueeze(1)
        return out.view(*z.shape[:3], -1)


class OnOutputs(BottleneckOperator):
    """Reads the sub-layer's output."""

    reads_x, reads_y = False, True


class Bottleneck(Unchosen):
    """Base of the adapter methods; holds no state.

    Args:
        name: The method's name.
        scale: Default scale.
    """

    operator_type: type[BottleneckOperator]

    def __init__(self, name: str, scale: float) -> None:
        self.schema = MethodSchema(
            name=name,
            size="size",
            parameters=(
                ParameterSchema("size", "int", minimum=1),
                ParameterSchema("activation", "str", default="relu", choices=tuple(ACTIVATIONS)),
                ParameterSchema("scale", "float", default=scale),
                ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
                ParameterSchema(
                    "scaling", "str", default=SCALINGS[0], choices=SCALINGS, tacit=True
                ),
            ),
            sites=SUBLAYERS,
            default_sites=("ffn",),
        )

    def carried_by(self, anatomy: Anatomy) -> str:
        """It needs a sub-layer whose input and output maps are known."""
        return "" if anatomy.sublayers else "its sub-layers were not found"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and sub-layer."""
        return sublayer_places(group, anatomy)

    def count(self, group: Group, place: Place) -> int:
        """2 d m + m + d, biases included."""
        size = int(group["size"])
        return size * (place.d_in + place.d_out) + size + place.d_out

    def training_count(self, group: Group, place: Place) -> int:
        """The same, and s while it is trained."""
        return self.count(group, place) + len(scale_at_start(group, place.d_out))

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """The activation's output, its input where that is not enough, z, and what s scales."""
        size = int(group["size"])
        inner = size if group["activation"] in OF_OUTPUT else 2 * size
        inner += place.d_out if scaling_of(group) != "fixed" else 0
        return Kept(inner, of_output=self.operator_type.reads_y, products_only=True)

    def folded_group(self, group: Group) -> Group:
        """The same adapter at a fixed scale."""
        settings = dict(group.settings) | {"scaling": SCALINGS[0]}
        if not self.schema.parameter("scaling").is_said(SCALINGS[0]):
            del settings["scaling"]
        return Group.of(group.method, group.layers, group.sites, **settings)

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """s within U and b_U."""
        own = dict(tensors)
        if "learned_scale" in own:
            factor = own.pop("learned_scale")
            own["up"], own["up_bias"] = own["up"] * factor, own["up_bias"] * factor
        return own

    def stack_key(self, group: Group) -> Hashable:
        """Sizes of one class with one activation and one way of scaling stack."""
        return size_class(int(group["size"])), group["activation"], scaling_of(group)


def scaling_of(group: Group) -> str:
    """Which of `SCALINGS` a group has."""
    return str(group.get("scaling", SCALINGS[0]))


def scale_at_start(group: Group, d_out: int) -> Tensor:
    """s as it starts: ones, [d_out] or [1]; [0] where it is not trained."""
    return torch.ones({"fixed": 0, "scalar": 1, "channel": d_out}[scaling_of(group)])


def with_scale(group: Group, d_out: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Initial tensors, and s where it is trained."""
    scale = scale_at_start(group, d_out)
    return tensors | {"learned_scale": scale} if len(scale) else tensors
