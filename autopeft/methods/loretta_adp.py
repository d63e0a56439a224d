"""LoRETTA, adapters: serial bottleneck adapters made of tensor trains (arXiv 2402.11417).

y + act(y D + b_D) U + b_U on a sub-layer's output, before the residual, D [d, m] and U [m, d] of
small cores each. The paper places them after attention and after the FFN, with m = 64 and ReLU.
Cores are drawn as released, N(0, 1) times a spread that gives D the variance 1 / (d + m); but the
released U is drawn too: here its last core is zero, so that the configured model is the backbone.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from autopeft.backbone.anatomy import SUBLAYERS, Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import Kept, Start, registry
from autopeft.methods.bottleneck import ACTIVATIONS, OF_OUTPUT
from autopeft.methods.inherited import Unfolded, sublayer_places
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.methods.loretta_rep import cores_of
from autopeft.methods.tensor_train import initial_cores, n_entries, product
from autopeft.space.schema import MethodSchema, ParameterSchema


class LorettaAdapterOperator(LaneOperator):
    """Stacked cores `down_j` and `up_j`, [k, r, k_j, r], b_D [k, m] and b_U [k, d].

    All lanes have one bottleneck; padded ranks stay zero, as in `loretta_rep`.
    """

    hook = "sublayer"
    reads_x = False
    down_bias: Tensor
    up_bias: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._d, self._bottleneck = stack.place.d_in, int(stack.groups[0]["bottleneck"])
        self.activation = ACTIVATIONS[str(stack.groups[0]["activation"])]
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """act(y D + b_D) U + b_U."""
        down = product(cores_of(dict(self.named_parameters()), "down"), self._d)
        up = product(cores_of(dict(self.named_parameters()), "up"), self._bottleneck)
        z = self.dropout(y, call)
        hidden = lane_product(z.flatten(1, 2), down, self.down_bias)
        out = lane_product(self.activation(hidden), up, self.up_bias)
        return out.view(*z.shape[:3], -1)


class LorettaAdapter(Unfolded):
    """The method `loretta_adp`."""

    operator_type = LorettaAdapterOperator
    schema = MethodSchema(
        name="loretta_adp",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("bottleneck", "int", default=64, minimum=1),
            ParameterSchema("activation", "str", default="relu", choices=tuple(ACTIVATIONS)),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=SUBLAYERS,
        default_sites=SUBLAYERS,
    )
    source = "Yang et al. 2024, LoRETTA, arXiv 2402.11417; yifanycc/loretta"
    identity = "exact"

    def carried_by(self, anatomy: Anatomy) -> str:
        """It needs a sub-layer whose input and output maps are known."""
        return "" if anatomy.sublayers else "its sub-layers were not found"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and sub-layer."""
        return sublayer_places(group, anatomy)

    def count(self, group: Group, place: Place) -> int:
        """Entries of both trains, and both biases."""
        rank, bottleneck, d = int(group["rank"]), int(group["bottleneck"]), place.d_in
        trains = n_entries(d, bottleneck, rank) + n_entries(bottleneck, d, rank)
        return trains + bottleneck + d

    training_count = count

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """What the activation keeps, and y; both factors while it runs."""
        bottleneck = int(group["bottleneck"])
        inner = bottleneck if group["activation"] in OF_OUTPUT else 2 * bottleneck
        return Kept(inner, of_output=True, weights=2 * bottleneck * place.d_in)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """D's cores drawn, U's too but for the last; biases zero."""
        rank, bottleneck, d = int(group["rank"]), int(group["bottleneck"]), place.d_in
        return {
            **initial_cores("down", d, bottleneck, rank, start.draw, zero=False),
            **initial_cores("up", bottleneck, d, rank, start.draw, zero=True),
            "down_bias": torch.zeros(bottleneck),
            "up_bias": torch.zeros(d),
        }

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack, where bottleneck and activation are the same."""
        return size_class(int(group["rank"])), int(group["bottleneck"]), group["activation"]


registry.register(LorettaAdapter())
