"""The linear adapter: a bottleneck after, or beside, one linear map (arXiv 2304.01933).

LLM-Adapters attach bottlenecks to single maps of attention and FFN:

    series    y + scale * act(dropout(y) D) U
    parallel  y + scale * act(dropout(x) D) U

x and y the map's input and output. As released: no biases, tanh, scale 1, and a bottleneck of 256.
Here, D is kaiming-uniform(a = sqrt 5) and U zero in both forms; that is their `mam_adapter`, while
their default, `bert`, draws both from N(0, 0.02), which does not begin at the backbone. Their best
placements (`math_running_commands`) are in series after the FFN's last map and in parallel to its
`up` and `down`. Where none are named, theirs in series also stand before `gate` and `up`, on what
these read: that is not here.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import Kept, Start, registry
from autopeft.methods.bottleneck import ACTIVATIONS
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.methods.lora import kaiming
from autopeft.space.schema import MethodSchema, ParameterSchema

FORMS = ("parallel", "series")


class LinearAdapterOperator(LaneOperator):
    """Stacked D [k, d_in or d_out, m] and U [k, m, d_out].

    Padded widths stay zero: act(0) = 0 meets U's padded rows, and these zeros are all that D's
    padded columns meet.
    """

    products_only = True
    down: Tensor
    up: Tensor
    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._series = stack.groups[0]["form"] == "series"
        self.activation = ACTIVATIONS[str(stack.groups[0]["activation"])]
        scales = stack.floats("scale")
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """scale * act(z D) U, z the map's input, or a copy of its output."""
        z = self.dropout(y.clone() if self._series else x, call)
        hidden = self.activation(lane_product(z.flatten(1, 2), self.down))
        scaled = hidden * self.scale.to(hidden.dtype).view(-1, 1, 1)
        return lane_product(scaled, self.up).view(*y.shape)


class LinearAdapter(OnLinearMaps):
    """The method `linear_adapter`."""

    operator_type = LinearAdapterOperator
    schema = MethodSchema(
        name="linear_adapter",
        size="size",
        parameters=(
            ParameterSchema("size", "int", minimum=1),
            ParameterSchema("form", "str", default=FORMS[0], choices=FORMS),
            ParameterSchema("activation", "str", default="tanh", choices=tuple(ACTIVATIONS)),
            ParameterSchema("scale", "float", default=1.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("up", "down"),
    )
    source = "Hu et al. 2023, LLM-Adapters, arXiv 2304.01933; AGI-Edgerunners/LLM-Adapters"
    identity = "exact"

    def count(self, group: Group, place: Place) -> int:
        """m (d_in + d_out), or 2 m d_out in series."""
        return int(group["size"]) * (_read(group, place) + place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """What D makes and the activation's output, scaled; x, or a copy of y."""
        inner = int(group["size"]) * (2 if group["activation"] in ("relu", "tanh") else 3)
        if group["form"] == "series":
            return Kept(inner + place.d_out, reads=False, products_only=True)
        return Kept(inner, products_only=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """D uniform in +-1/sqrt(its inputs), U zero."""
        size, read = int(group["size"]), _read(group, place)
        down = kaiming(read, (read, size), start.draw("down"))
        return {"down": down, "up": torch.zeros(size, place.d_out)}

    def stack_key(self, group: Group) -> Hashable:
        """Sizes of one class with one form and one activation stack."""
        return size_class(int(group["size"])), group["form"], group["activation"]


def _read(group: Group, place: Place) -> int:
    """The width that D reads."""
    return place.d_out if group["form"] == "series" else place.d_in


registry.register(LinearAdapter())
