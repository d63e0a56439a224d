"""Salient channel tuning: a small linear map on the most active channels (arXiv 2309.08513).

y[c] + y[c] A + b, y a sub-layer's output before the residual, c the K chosen channels, A [K, K]
drawn N(0, 0.02) and b zero, as released: close to the backbone at the start, and not equal to it.
The paper scores channels by their L2 norm over the images of each class; here the score
`activation` of the sub-layer's last map stands for it, which knows no classes. Once trained, that
map can take it up.
"""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from torch import Tensor, randperm

from autopeft.backbone.anatomy import EXIT, SUBLAYERS, Anatomy
from autopeft.backbone.importance import Floats, ImportanceMap
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import Unfolded, sublayer_places
from autopeft.methods.lane_operator import Call, LaneOperator, Place, Stack, size_class
from autopeft.methods.sparse_operators import taken
from autopeft.methods.units import MEASURED, scores_at
from autopeft.space.schema import MethodSchema, ParameterSchema

INITIAL_STD = 0.02


class SalientOperator(LaneOperator):
    """Stacked A [k, K, K], b [k, K] and channels [k, K].

    A padded channel reads and writes zero, so that its row and column of A and its entry of b get
    no gradient.
    """

    hook = "sublayer"
    reads_x = False
    fixed_names = ("index",)
    linear: Tensor
    bias: Tensor
    index: Tensor
    valid: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        numbers = torch.tensor([len(own["index"]) for own in stack.tensors])
        steps = torch.arange(int(numbers.max()))
        self.register_buffer("valid", (steps.unsqueeze(0) < numbers.unsqueeze(1)).double())

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """y[c] A + b at the chosen channels, zero elsewhere."""
        rows, valid = y.flatten(1, 2), self.valid.to(y.dtype).unsqueeze(1)
        at = self.index.unsqueeze(1).expand(-1, rows.shape[1], -1)
        read = taken(rows, 2, at) * valid
        made = lane_product(read, self.linear, self.bias) * valid.to(read.dtype)
        return torch.zeros_like(rows, dtype=made.dtype).scatter_add_(2, at, made).view(y.shape)


class SalientChannels(Unfolded):
    """The method `salient_channels`."""

    operator_type = SalientOperator
    schema = MethodSchema(
        name="salient_channels",
        size="channels",
        parameters=(
            ParameterSchema("channels", "int", minimum=1),
            ParameterSchema(
                "score",
                "str",
                default="activation",
                choices=(*MEASURED, "random", "magnitude"),
                measured=MEASURED,
            ),
        ),
        sites=SUBLAYERS,
        default_sites=("attention",),
    )
    source = "Zhao et al. 2023, SCT, arXiv 2309.08513; zhaohengyuan1/SCT"
    identity = "near: the map on the chosen channels starts at N(0, 0.02), as released"

    def carried_by(self, anatomy: Anatomy) -> str:
        """It needs a sub-layer whose input and output maps are known."""
        return "" if anatomy.sublayers else "its sub-layers were not found"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and sub-layer."""
        return sublayer_places(group, anatomy)

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """More channels than hidden states have."""
        if int(group["channels"]) <= anatomy.hidden_size:
            return []
        given, allowed = str(group["channels"]), f"at most {anatomy.hidden_size}"
        return [Fault("configuration", "salient_channels.channels", given, allowed)]

    def count(self, group: Group, place: Place) -> int:
        """K^2 + K."""
        channels = int(group["channels"])
        return channels * channels + channels

    training_count = count

    def fixed_count(self, group: Group, place: Place) -> int:
        """The channels' numbers."""
        return int(group["channels"])

    def scored_index(self, group: Group, place: Place, importance: ImportanceMap) -> Tensor | None:
        """The channels of a measured score."""
        score = str(group["score"])
        if score not in MEASURED:
            return None
        return _highest(_measured(score, place, importance), int(group["channels"]))

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """The chosen channels."""
        return Kept(int(group["channels"]), reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A N(0, 0.02), b zero, and the channels with the highest scores."""
        number = int(group["channels"])
        index = start.saved.get("index")
        if index is None:
            index = _chosen(str(group["score"]), number, place, start)
        draw = torch.randn(number, number, generator=start.draw("linear"))
        return {
            "linear": draw * INITIAL_STD,
            "bias": torch.zeros(number),
            "index": index.long(),
        }

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """The sub-layer's last map: W + W[:, c] A at its columns c, and b + b[c] A + b' there."""
        index, linear = tensors["index"].long(), tensors["linear"]
        weight = frozen.weight.index_add(1, index, frozen.weight[:, index] @ linear)
        shift = frozen.weight.new_zeros(place.d_out) if frozen.bias is None else frozen.bias
        bias = shift.index_add(0, index, shift[index] @ linear + tensors["bias"])
        return DenseMap(weight, bias)

    def stack_key(self, group: Group) -> Hashable:
        """Numbers of channels of one size class stack."""
        return size_class(int(group["channels"]))


def _chosen(score: str, number: int, place: Place, start: Start) -> Tensor:
    """The channels that the sub-layer's last map writes with the highest scores, ascending."""
    if score == "random":
        order = randperm(place.d_out, generator=start.draw("index"))
        return order[:number].sort().values
    if score == "magnitude":
        weight = start.weight(place.layer, EXIT[place.site])
        return _highest(weight.abs().sum(0).numpy(), number)
    return _highest(_measured(score, place, start.importance), number)


def _measured(score: str, place: Place, importance: ImportanceMap | None) -> Floats:
    return scores_at(importance, score, (place.layer, EXIT[place.site])).outputs


def _highest(values: Floats, number: int) -> Tensor:
    return torch.from_numpy(np.sort(np.argsort(-values, kind="stable")[:number]))


registry.register(SalientChannels())
