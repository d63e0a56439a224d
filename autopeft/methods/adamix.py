"""AdaMix: a serial adapter of which every training pass runs another expert (arXiv 2205.12410).

y + act(dropout(y) D_i + b_i) U_j + c_j, y the sub-layer's output before the residual. In training
i and j are drawn for every place and step, uniformly; all lanes see the same draw, each among its
own experts. In evaluation, and once training ends, the experts are averaged: what is stored is one
adapter. With `share_up` (as the authors' runs have it) there is one U for all D_i.

Every training step makes a second pass with other draws, and the lane's loss holds `consistency`
times the symmetric Kullback-Leibler divergence of both predictions, (KL(p|q) + KL(q|p)) / 2; the
authors' runs on language generation weigh it by 100. At 0 there is one pass.

As released: GELU, after the FFN alone, four experts that start as copies of one. They are drawn
N(0, 0.02) here, with zero biases, as `serial_adapter` is.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import SUBLAYERS, Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import Kept, Start, registry
from autopeft.methods.bottleneck import ACTIVATIONS
from autopeft.methods.inherited import Unchosen, sublayer_places
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.methods.serial_adapter import INITIAL_STD
from autopeft.space.schema import MethodSchema, ParameterSchema

TENSORS = ("down", "down_bias", "up", "up_bias")


class AdamixOperator(LaneOperator):
    """Stacked D [k, e, d, m], b [k, e, m], U [k, e or 1, m, d] and c [k, e or 1, d].

    Padded widths stay zero, as a serial adapter's. All members have as many experts.
    """

    hook = "sublayer"
    reads_x = False
    products_only = True

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.activation = ACTIVATIONS[str(stack.groups[0]["activation"])]
        self.dropout = LaneDropout.of(stack)

    def decays(self, tensor_name: str) -> bool:
        """Biases do not, though they have an axis of experts."""
        return not tensor_name.endswith("bias")

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What one expert makes of y in training, and their mean else."""
        down, down_bias = self._expert("down", call)
        up, up_bias = self._expert("up", call)
        z = self.dropout(y, call)
        hidden = lane_product(z.flatten(1, 2), down, down_bias)
        out = lane_product(self.activation(hidden), up, up_bias)
        return out.view(*z.shape[:3], -1)

    def _expert(self, name: str, call: Call) -> tuple[Tensor, Tensor]:
        """A map [k, a, b] and its bias [k, b]: the drawn expert's, or all experts' mean."""
        both = self.get_parameter(name), self.get_parameter(f"{name}_bias")
        experts = both[0].shape[1]
        if not call.training or experts == 1:
            return both[0].mean(1), both[1].mean(1)
        draw = call.uniform(f"{self.name}/{name}", (1,), per_row=False)
        chosen = (draw * experts).long()
        weight, bias = (each.index_select(1, chosen).squeeze(1) for each in both)
        return weight, bias


class Adamix(Unchosen):
    """The method `adamix`."""

    operator_type = AdamixOperator
    schema = MethodSchema(
        name="adamix",
        size="size",
        parameters=(
            ParameterSchema("size", "int", minimum=1),
            ParameterSchema("experts", "int", default=4, minimum=1),
            ParameterSchema("share_up", "bool", default=True),
            ParameterSchema("consistency", "float", default=1.0, minimum=0.0),
            ParameterSchema("activation", "str", default="gelu", choices=tuple(ACTIVATIONS)),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=SUBLAYERS,
        default_sites=("ffn",),
    )
    source = "Wang et al. 2022, AdaMix, arXiv 2205.12410; microsoft/AdaMix"
    identity = "near: both projections start at N(0, 0.02)"

    def carried_by(self, anatomy: Anatomy) -> str:
        """It needs a sub-layer whose input and output maps are known."""
        return "" if anatomy.sublayers else "its sub-layers were not found"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and sub-layer."""
        return sublayer_places(group, anatomy)

    def count(self, group: Group, place: Place) -> int:
        """2 d m + m + d: the experts' mean."""
        return self._down(group, place) + self._up(group, place)

    def training_count(self, group: Group, place: Place) -> int:
        """e of each map, or one U."""
        experts = int(group["experts"])
        ups = 1 if group["share_up"] else experts
        return experts * self._down(group, place) + ups * self._up(group, place)

    def _down(self, group: Group, place: Place) -> int:
        return int(group["size"]) * (place.d_in + 1)

    def _up(self, group: Group, place: Place) -> int:
        return (int(group["size"]) + 1) * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """What the activation keeps, and y; one expert's maps while it runs."""
        size = int(group["size"])
        inner = size if group["activation"] == "relu" else 2 * size
        return Kept(inner, of_output=True, weights=self.count(group, place), products_only=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Both maps N(0, 0.02), the same for all experts, biases zero."""
        size, experts = int(group["size"]), int(group["experts"])
        ups = 1 if group["share_up"] else experts
        down = torch.randn(place.d_in, size, generator=start.draw("down")) * INITIAL_STD
        up = torch.randn(size, place.d_out, generator=start.draw("up")) * INITIAL_STD
        return {
            "down": down.repeat(experts, 1, 1),
            "down_bias": torch.zeros(experts, size),
            "up": up.repeat(ups, 1, 1),
            "up_bias": torch.zeros(ups, place.d_out),
        }

    def folded_group(self, group: Group) -> Group:
        """The same adapter with one expert."""
        settings = dict(group.settings) | {"experts": 1, "share_up": True}
        return Group.of(group.method, group.layers, group.sites, **settings)

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Experts' means."""
        return {name: tensors[name].mean(0, keepdim=True) for name in TENSORS if name in tensors}

    def consistency(self, group: Group) -> float:
        """As it is set."""
        return float(group["consistency"])

    def stack_key(self, group: Group) -> Hashable:
        """Sizes of one class with one activation and as many experts stack."""
        kind = group["activation"], group["experts"], group["share_up"]
        return size_class(int(group["size"])), *kind


registry.register(Adamix())
