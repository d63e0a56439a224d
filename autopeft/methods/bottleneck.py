"""What the serial and the parallel adapter share: a bottleneck with an activation.

f(z) = scale * (act(dropout(z) D + b_D) U + b_U), D [d, m], U [m, d]. They differ in what z is, and
in how the paper of the space (AutoPEFT) initialises them.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.anatomy import SUBLAYERS, Anatomy
from autopeft.configuration import Group
from autopeft.methods.base import Call, Kept, LaneDropout, LaneOperator, Place, size_class
from autopeft.methods.inherited import Unfolded, sublayer_places
from autopeft.space.schema import MethodSchema, ParameterSchema

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "silu": functional.silu,
}
"""All are zero at zero, which is what keeps padded bottlenecks silent."""
OF_OUTPUT = ("relu", "tanh")
"""Those whose gradient is a function of their output."""


class BottleneckOperator(LaneOperator):
    """Stacked D [k, d, m], b_D [k, m], U [k, m, d], b_U [k, d]; one activation for all members.

    Padded widths stay zero: their activation is act(0) = 0, so U's padded rows get no gradient,
    and zero rows of U give none to D and b_D.

    Args:
        name: Prefix of the saved tensors.
        members: Positions in the stream.
        groups: The members' groups.
        tensors: The members' initial tensors.
        reads_output: Whether it reads the sub-layer's output (serial) or its input (parallel).
    """

    hook = "sublayer"
    products_only = True

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    scale: Tensor

    def __init__(
        self,
        name: str,
        members: Sequence[int],
        groups: Sequence[Group],
        tensors: Sequence[Mapping[str, Tensor]],
        *,
        reads_output: bool,
    ) -> None:
        super().__init__(name, members, tensors)
        self.reads_output = reads_output
        self.activation = ACTIVATIONS[str(groups[0]["activation"])]
        scales = [float(group["scale"]) for group in groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout(name, [float(group["dropout"]) for group in groups])

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """scale * f(y) for the serial adapter, scale * f(x) for the parallel one."""
        z = self.dropout(y if self.reads_output else x, call)
        hidden = torch.baddbmm(self.down_bias.unsqueeze(1), z.flatten(1, 2), self.down)
        out = torch.baddbmm(self.up_bias.unsqueeze(1), self.activation(hidden), self.up)
        return (out * self.scale.to(out.dtype).view(-1, 1, 1)).view(*z.shape[:3], -1)


class Bottleneck(Unfolded):
    """Base of the two adapter methods; holds no state.

    Args:
        name: The method's name.
        scale: Default scale.
    """

    peft_type = ""
    reads_output: bool

    def __init__(self, name: str, scale: float) -> None:
        self.schema = MethodSchema(
            name=name,
            size="size",
            parameters=(
                ParameterSchema("size", "int", minimum=1),
                ParameterSchema("activation", "str", default="relu", choices=tuple(ACTIVATIONS)),
                ParameterSchema("scale", "float", default=scale),
                ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
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

    training_count = count

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """The activation's output, its input too where that is not enough, and z."""
        size = int(group["size"])
        inner = size if group["activation"] in OF_OUTPUT else 2 * size
        return Kept(inner, of_output=self.reads_output)

    def stack_key(self, group: Group) -> Hashable:
        """Sizes of one class with one activation stack."""
        return size_class(int(group["size"])), group["activation"]

    def operator(
        self,
        name: str,
        place: Place,
        members: Sequence[int],
        groups: Sequence[Group],
        tensors: Sequence[Mapping[str, Tensor]],
    ) -> LaneOperator:
        """The stacked operator."""
        return BottleneckOperator(name, members, groups, tensors, reads_output=self.reads_output)
