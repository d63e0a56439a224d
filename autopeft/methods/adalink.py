"""AdaLink: a low-rank residual map on hidden states before a layer reads them (arXiv 2310.12100).

e + act(e D) U at the input of every layer of the group, D [d, r], U [r, d]. The paper adapts the
embeddings, which is `layers: [0]`: there the backbone's own layers see inputs of another task and
nothing else changes. D is drawn kaiming-uniform(a = sqrt 5) and U is zero: the model starts as the
backbone. No code was released; initialisation and the place of dropout are this project's choice.
A backbone here has one modality, so there is one map for all tokens.
"""

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import Kept, Reached, Start, registry
from autopeft.methods.bottleneck import ACTIVATIONS
from autopeft.methods.inherited import Unfolded, layer_places
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

CHOICES: Mapping[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, **ACTIVATIONS}


class AdaLinkOperator(LaneOperator):
    """Stacked D [k, d, r] and U [k, r, d]; one activation for all members.

    Padded ranks stay zero: act(0) = 0 leaves U's padded rows without a gradient, and those, being
    zero, D's padded columns.
    """

    hook = "input"
    products_only = True
    down: Tensor
    up: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._activation = CHOICES[str(stack.groups[0]["activation"])]
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """act(x D) U."""
        low = lane_product(self.dropout(x, call).flatten(1, 2), self.down)
        return lane_product(self._activation(low), self.up).view(x.shape)


class AdaLink(Unfolded):
    """The method `adalink`."""

    operator_type = AdaLinkOperator
    schema = MethodSchema(
        name="adalink",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("activation", "str", default="none", choices=tuple(CHOICES)),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
    )
    source = "Wang et al. 2023, Non-Intrusive Adaptation (AdaLink), arXiv 2310.12100"
    reached: Reached = "attention"
    stands_for: tuple[str, ...] = ("query", "key", "value")
    identity = "exact"

    def carried_by(self, anatomy: Anatomy) -> str:
        """Any backbone with layers."""
        return ""

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """The input of every layer."""
        return layer_places(group, anatomy)

    def count(self, group: Group, place: Place) -> int:
        """2 d r."""
        return int(group["rank"]) * (place.d_in + place.d_out)

    training_count = count

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, and the activation's output, its input too where ReLU is not enough."""
        rank = int(group["rank"])
        inner = rank if group["activation"] in ("none", "relu") else 2 * rank
        return Kept(inner, products_only=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """D uniform in +-1/sqrt(d) (kaiming-uniform with a = sqrt 5), U zero."""
        rank = int(group["rank"])
        return {
            "down": kaiming(place.d_in, (place.d_in, rank), start.draw("down")),
            "up": torch.zeros(rank, place.d_out),
        }

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class with one activation stack."""
        return size_class(int(group["rank"])), group["activation"]


registry.register(AdaLink())
