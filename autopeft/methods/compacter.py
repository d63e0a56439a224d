"""Compacter: serial bottleneck adapters made of Kronecker products (arXiv 2106.04647).

y + act(dropout(y) D + b_D) U + b_U, before the residual, with

    D = sum_i C_i (x) (S_i T_i),  U = sum_i C_i (x) (S'_i T'_i),  i = 1 .. n

C_i [n, n], shared by all adapters of a group and by both of their maps; S_i [d / n, r] and T_i
[r, m / n] an adapter's own, of rank r (1 in the paper). After attention and after the FFN by
default; `sites: [ffn]` is Compacter++. As released: GELU, n = 4, C drawn N(0, 0.01), S and T
Glorot-uniform, each component by itself, and biases zero.
"""

import math
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import SUBLAYERS, Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Start, registry
from autopeft.methods.bottleneck import ACTIVATIONS, OF_OUTPUT
from autopeft.methods.inherited import Unfolded, divisors, sublayer_places
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.space.schema import MethodSchema, ParameterSchema

RULE_STD = 0.01
"""The released default; the authors' configurations for T5 say 0.0001."""


class CompacterOperator(LaneOperator):
    """Stacked S [k, n, d / n, r], T [k, n, r, m / n], S' [k, n, m / n, r], T' [k, n, r, d / n].

    C [k, n, n, n] is held at the group's first place. Padded ranks stay zero: S's padded columns
    meet T's zero rows and the other way round. Bottlenecks are the same for all members.
    """

    hook = "sublayer"
    reads_x = False
    products_only = True

    down_left: Tensor
    down_right: Tensor
    down_bias: Tensor
    up_left: Tensor
    up_right: Tensor
    up_bias: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.activation = ACTIVATIONS[str(stack.groups[0]["activation"])]
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """act(y D + b_D) U + b_U."""
        rule = self.trained("rule")
        down = kronecker_sum(rule, self.down_left @ self.down_right)
        up = kronecker_sum(rule, self.up_left @ self.up_right)
        z = self.dropout(y, call)
        hidden = lane_product(z.flatten(1, 2), down, self.down_bias)
        out = lane_product(self.activation(hidden), up, self.up_bias)
        return out.view(*z.shape[:3], -1)


def kronecker_sum(left: Tensor, right: Tensor) -> Tensor:
    """sum_i A_i (x) B_i: [k, n, a, b] and [k, n, c, d] -> [k, a c, b d]."""
    blocks = torch.einsum("kiab,kicd->kacbd", left, right)
    return blocks.flatten(3).flatten(1, 2)


class Compacter(Unfolded):
    """The method `compacter`."""

    operator_type = CompacterOperator
    schema = MethodSchema(
        name="compacter",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("bottleneck", "int", default=24, minimum=1),
            ParameterSchema("division", "int", default=4, minimum=1),
            ParameterSchema("activation", "str", default="gelu", choices=tuple(ACTIVATIONS)),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=SUBLAYERS,
        default_sites=SUBLAYERS,
    )
    source = "Mahabadi et al. 2021, Compacter, arXiv 2106.04647; rabeehk/compacter"
    identity = "near: C starts at N(0, 0.01), as released, and U is a product with it"

    def carried_by(self, anatomy: Anatomy) -> str:
        """It needs a sub-layer whose input and output maps are known."""
        return "" if anatomy.sublayers else "its sub-layers were not found"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and sub-layer."""
        return sublayer_places(group, anatomy)

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """A division that does not divide the bottleneck and the residual width."""
        widths = anatomy.hidden_size, int(group["bottleneck"])
        allowed = divisors(*widths)
        if int(group["division"]) in allowed:
            return []
        given = f"{group['division']}, of widths {widths[0]} and {widths[1]}"
        legal = ", ".join(str(each) for each in allowed)
        return [Fault("configuration", "compacter.division", given, legal)]

    def count(self, group: Group, place: Place) -> int:
        """2 r (d + m) + d + m, and n^3 at the first place."""
        wide = place.d_in + int(group["bottleneck"])
        rule = 0 if self.owners(group, place) else int(group["division"]) ** 3
        return 2 * int(group["rank"]) * wide + wide + rule

    training_count = count

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """What the activation keeps, and y; both factors while it runs."""
        bottleneck = int(group["bottleneck"])
        inner = bottleneck if group["activation"] in OF_OUTPUT else 2 * bottleneck
        weights = 2 * bottleneck * place.d_in
        return Kept(inner, of_output=True, weights=weights, products_only=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """S and T uniform as Glorot's, C normal, biases zero."""
        n, rank = int(group["division"]), int(group["rank"])
        bottleneck, d = int(group["bottleneck"]), place.d_in
        shapes = {
            "down_left": (n, d // n, rank),
            "down_right": (n, rank, bottleneck // n),
            "up_left": (n, bottleneck // n, rank),
            "up_right": (n, rank, d // n),
        }
        tensors = {name: glorot(shape, start.draw(name)) for name, shape in shapes.items()}
        tensors |= {"down_bias": torch.zeros(bottleneck), "up_bias": torch.zeros(d)}
        if not self.owners(group, place):
            tensors["rule"] = torch.randn(n, n, n, generator=start.draw("rule")) * RULE_STD
        return tensors

    def owners(self, group: Group, place: Place) -> Mapping[str, tuple[int, str]]:
        """C is at the first layer's first site."""
        first = group.layers[0], group.sites[0]
        return {} if (place.layer, place.site) == first else {"rule": first}

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class, with the same shapes, activation and places."""
        sizes = size_class(int(group["rank"])), group["bottleneck"], group["division"]
        return *sizes, group["activation"], group.layers, group.sites


def glorot(shape: tuple[int, int, int], draw: torch.Generator) -> Tensor:
    """Components [n, a, b], each uniform in +-sqrt(6 / (a + b))."""
    bound = math.sqrt(6.0 / (shape[1] + shape[2]))
    return torch.empty(*shape).uniform_(-bound, bound, generator=draw)


registry.register(Compacter())
