"""MSPLoRA: a pyramid of LoRAs, of all layers, of a third of them, and of one (arXiv 2503.21838).

y + sum_i (alpha / r_i) x A_i B_i over three scales i: one pair A, B that a site's map has in
common in all of the group's layers, with r_g = 4 r, one for each third of them, with r_m = 2 r,
and one of its own, with rank r: the released llama settings (Oblivioniss/MSPLoRA) are r = 16. What
is shared is shared by layers and not by sites: queries with queries, values with values. As in
LoRA, A is drawn kaiming-uniform(a = sqrt 5) and B is zero; alpha is the same for all scales.

Here the three scales see one dropout of x, where the release draws three. Thirds are of the
group's layers, in their order; with fewer than three layers, some scales have one layer each. Once
trained it is LoRA of rank 7 r at every map, and no longer shared.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
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

SCALES = {"global": 4, "middle": 2, "local": 1}
"""The ranks of the three, in units of the local one."""
THIRDS = 3


class MspLoraOperator(LaneOperator):
    """Stacked A_i [k, d_in, r_i] and B_i [k, r_i, d_out] of those scales that are held here.

    Padded ranks stay zero, as in LoRA: A's padded columns meet B's zero rows.
    """

    products_only = True

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        over_rank = [float(group["alpha"]) / int(group["rank"]) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(over_rank, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """All scales at once, as one LoRA of their ranks side by side."""
        a = torch.cat([self.trained(f"A_{name}") for name in SCALES], dim=2)
        b = torch.cat([self.trained(f"B_{name}") / times for name, times in SCALES.items()], dim=1)
        low = lane_product(self.dropout(x, call).flatten(1, 2), a)
        scaled = low * self.get_buffer("scale").to(low.dtype).view(-1, 1, 1)
        return lane_product(scaled, b).view(*x.shape[:3], -1)


class MspLora(OnLinearMaps):
    """The method `msplora`."""

    operator_type = MspLoraOperator
    schema = MethodSchema(
        name="msplora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Zhao et al. 2025, MSPLoRA, arXiv 2503.21838; Oblivioniss/MSPLoRA"
    identity = "exact"
    peft_type = "LORA"

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out), and 2 and 4 times as many where a third, and where all start."""
        times = sum(SCALES[name] for name in _held(group, place))
        return times * int(group["rank"]) * (place.d_in + place.d_out)

    def frozen_work(self, group: Group, place: Place) -> int:
        """What is held in other layers."""
        whole = sum(SCALES.values()) * int(group["rank"]) * (place.d_in + place.d_out)
        return whole - self.count(group, place)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, and what all scales make of it, before and behind alpha; the factors side by side."""
        rank = sum(SCALES.values()) * int(group["rank"])
        weights = rank * (place.d_in + 2 * place.d_out)
        return Kept(rank, weights=weights, products_only=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Every A uniform in +-1/sqrt(d_in), every B zero."""
        tensors = {}
        for name in _held(group, place):
            rank = SCALES[name] * int(group["rank"])
            shape, draw = (place.d_in, rank), start.draw(f"A_{name}")
            tensors[f"A_{name}"] = kaiming(place.d_in, shape, draw)
            tensors[f"B_{name}"] = torch.zeros(rank, place.d_out)
        return tensors

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """All scales side by side, each with its alpha / r_i."""
        over_rank = float(group["alpha"]) / int(group["rank"])
        a = [tensors[f"A_{name}"] for name in SCALES]
        b = [over_rank / times * tensors[f"B_{name}"] for name, times in SCALES.items()]
        return torch.cat(a, 1), torch.cat(b)

    def owners(self, group: Group, place: Place) -> Mapping[str, tuple[int, str]]:
        """Each scale's factors are at the first of its layers, at the same site."""
        return {
            f"{factor}_{name}": (first, place.site)
            for name, first in _firsts(group, place).items()
            for factor in ("A", "B")
            if first != place.layer
        }

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class, on the same layers."""
        return size_class(int(group["rank"])), group.layers


def _firsts(group: Group, place: Place) -> dict[str, int]:
    """The first layer of each scale that a place takes part in."""
    layers = group.layers
    third = layers.index(place.layer) * THIRDS // len(layers)
    of_third = [each for i, each in enumerate(layers) if i * THIRDS // len(layers) == third]
    return {"global": layers[0], "middle": of_third[0], "local": place.layer}


def _held(group: Group, place: Place) -> list[str]:
    """The scales whose factors are held at a place."""
    return [name for name, first in _firsts(group, place).items() if first == place.layer]


registry.register(MspLora())
