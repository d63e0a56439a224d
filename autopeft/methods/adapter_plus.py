"""Adapter+: a bottleneck on a layer's output, with a trained scale (arXiv 2406.06820).

h + s * (act(dropout(h) D + b_D) U + b_U), h the layer's output, the residual within it: the
paper's place `post`, best of those that it compares. s is one factor for every channel (`scaling:
channel`), one for all (`scalar`) or 1 (`fixed`); trained ones start at 1 and are folded into U and
b_U once training ends. D and U are drawn N(0, 0.01), cut at two deviations, biases are zero, the
activation is GELU. In training a row's adapter is left out at the rate `drop_path`, and those of
other rows are scaled up.

As released, but for the frozen layers' own stochastic depth, which there is the adapters' too: a
frozen backbone runs whole here. Behind a norm (BERT), the output is the norm's.
"""

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Group
from autopeft.methods.base import Reached, Start, registry
from autopeft.methods.bottleneck import (
    ACTIVATIONS,
    SCALINGS,
    Bottleneck,
    BottleneckOperator,
    with_scale,
)
from autopeft.methods.inherited import layer_places
from autopeft.methods.lane_operator import Call, LaneDropout, Place, Stack
from autopeft.space.schema import MethodSchema, ParameterSchema

INITIAL_STD = 0.01
"""The paper's value, as in Houlsby et al.; the latter's code has 0.001."""


class AdapterPlusOperator(BottleneckOperator):
    """The same tensors, on hidden states."""

    hook = "output"
    reads_x, reads_y = False, True

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.path = LaneDropout(f"{stack.name}/path", stack.floats("drop_path"))

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """s * f(h), for the rows that have it."""
        out = super().delta(x, y, call)
        kept: Tensor = self.path(out.new_ones(*out.shape[:2], 1, 1), call)
        return out * kept


class AdapterPlus(Bottleneck):
    """The method `adapter_plus`."""

    operator_type = AdapterPlusOperator
    schema = MethodSchema(
        name="adapter_plus",
        size="size",
        parameters=(
            ParameterSchema("size", "int", minimum=1),
            ParameterSchema("scaling", "str", default="channel", choices=SCALINGS),
            ParameterSchema("activation", "str", default="gelu", choices=tuple(ACTIVATIONS)),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
            ParameterSchema("drop_path", "float", default=0.1, minimum=0.0, maximum=0.9),
        ),
    )
    source = "Steitz and Roth 2024, Adapters Strike Back, arXiv 2406.06820; visinf/adapter_plus"
    reached: Reached = "nothing"
    stands_for: tuple[str, ...] = ("output", "down")
    identity = "near: both projections start at N(0, 0.01), as released"

    def __init__(self) -> None:
        pass

    def carried_by(self, anatomy: Anatomy) -> str:
        """Any backbone with layers."""
        return ""

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """The output of every layer."""
        return layer_places(group, anatomy)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Both projections N(0, 0.01) within two deviations, biases zero, s one."""
        size = int(group["size"])
        tensors = {
            "down": _normal((place.d_in, size), start.draw("down")),
            "down_bias": torch.zeros(size),
            "up": _normal((size, place.d_out), start.draw("up")),
            "up_bias": torch.zeros(place.d_out),
        }
        return with_scale(group, place.d_out, tensors)


def _normal(shape: tuple[int, int], draw: torch.Generator) -> Tensor:
    far = 2.0 * INITIAL_STD
    return nn.init.trunc_normal_(
        torch.empty(*shape), std=INITIAL_STD, a=-far, b=far, generator=draw
    )


registry.register(AdapterPlus())
