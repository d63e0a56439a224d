"""LoRA: a low-rank additive update of a linear map (arXiv 2106.09685), with rsLoRA and DoRA.

y + s B(A(dropout(x))); A is drawn kaiming-uniform(a = sqrt 5), as HF `peft` draws it, and B is
zero. s = alpha / r, or alpha / sqrt(r) with `rank_stabilised` (rsLoRA, arXiv 2312.03732).

With `dora` (arXiv 2402.09353, eq. 5), every column of V = W + s A B gets a trained length of its
own, W' = (m / |V|) V, |V| taken as a constant in the backward pass (section 4.3). What is trained
of m is its distance from |W|, so that the configured model is the backbone. |V|^2 = |W|^2 +
2 s B.(A^T W) + s^2 B.(A^T A B), column by column: no dense change is formed. Dropout acts on the
low-rank branch alone; `peft` and the released code also drop the input of (m / |V| - 1) x W, which
takes a second product with W. Whatever else sits at the map, W is the frozen one: x W is read off
the output before other methods change it.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

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
from autopeft.space.schema import MethodSchema, ParameterSchema


class LoraOperator(LaneOperator):
    """Stacked A [k, d_in, r] and B [k, r, d_out].

    Padded ranks stay zero: A's padded columns meet B's zero rows and the other way round, so both
    gradients are exactly zero.
    """

    products_only = True
    reads_y = False

    A: Tensor
    B: Tensor
    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        scales = [scaling(group) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """s x A B per lane."""
        x = self.dropout(x, call)
        low = lane_product(x.flatten(1, 2), self.A)
        scaled = low * self.scale.to(low.dtype).view(-1, 1, 1)
        return lane_product(scaled, self.B).view(*x.shape[:3], -1)


class DoraOperator(LoraOperator):
    """The same with stacked `magnitude` [k, d_out]: m - |W|."""

    products_only = False
    reads_y = True
    goes_first = True
    magnitude: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """(m / |V| - 1) x W + (m / |V|) s x A B; keeps x W, a copy of the output."""
        bias = self.frozen.bias
        plain = y.clone() if bias is None else y - bias.to(y.dtype)
        length, changed = self._lengths()
        ratio = ((length + self.magnitude) / changed)[:, None, None]
        return (ratio - 1.0) * plain + ratio * super().delta(x, y, call)

    @torch.no_grad()
    def _lengths(self) -> tuple[Tensor, Tensor]:
        """|W| [d_out] and |V| [k, d_out]."""
        weight, low = self.frozen.weight.to(self.A.dtype), self.A.transpose(1, 2)
        scaled = self.scale.view(-1, 1, 1) * self.B
        squares = weight.square().sum(0)
        with torch.autocast(low.device.type, enabled=False):  # the sums are small differences
            across = (scaled * (low @ weight)).sum(1)
            own = (scaled * (low @ self.A @ scaled)).sum(1)
        return squares.sqrt(), (squares + 2.0 * across + own).clamp_min(0.0).sqrt()


def scaling(group: Group) -> float:
    """s: alpha / r, or alpha / sqrt(r)."""
    rank = int(group["rank"])
    return float(group["alpha"]) / (math.sqrt(rank) if group.get("rank_stabilised") else rank)


def kaiming(d_in: int, shape: Sequence[int], draw: torch.Generator) -> Tensor:
    """Uniform in +-1/sqrt(d_in): kaiming-uniform with a = sqrt 5, as torch draws a Linear."""
    bound = 1.0 / math.sqrt(d_in)
    return torch.empty(*shape).uniform_(-bound, bound, generator=draw)


class Lora(OnLinearMaps):
    """The method `lora`."""

    schema = MethodSchema(
        name="lora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
            ParameterSchema("rank_stabilised", "bool", default=False, tacit=True),
            ParameterSchema("dora", "bool", default=False, tacit=True),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = (
        "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685; "
        "rank_stabilised: Kalajdzievski 2023, arXiv 2312.03732; dora: Liu et al. 2024, arXiv "
        "2402.09353"
    )
    identity = "exact"
    peft_type = "LORA"

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out); with DoRA, d_out more."""
        lengths = place.d_out if group.get("dora") else 0
        return int(group["rank"]) * (place.d_in + place.d_out) + lengths

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """A, and B with the scale; of DoRA, which has lengths as well, these alone."""
        return tensors["A"], scaling(group) * tensors["B"]

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x A, and x; with DoRA, the output and the branch's output too."""
        rank = int(group["rank"])
        if not group.get("dora"):
            return Kept(rank, products_only=True)
        return Kept(rank + place.d_out, exact=place.d_out)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A uniform in +-1/sqrt(d_in) (kaiming-uniform with a = sqrt 5), B zero, m = |W|."""
        rank = int(group["rank"])
        tensors = {
            "A": kaiming(place.d_in, (place.d_in, rank), start.draw("A")),
            "B": torch.zeros(rank, place.d_out),
        }
        return tensors | ({"magnitude": torch.zeros(place.d_out)} if group.get("dora") else {})

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W + s A B, with DoRA at its trained lengths."""
        weight = frozen.weight + scaling(group) * (tensors["A"] @ tensors["B"])
        if group.get("dora"):
            lengths = frozen.weight.norm(dim=0) + tensors["magnitude"]
            weight = weight * (lengths / weight.norm(dim=0))
        return DenseMap(weight, frozen.bias)

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack."""
        rank = size_class(int(group["rank"]))
        return (rank, "dora") if group.get("dora") else rank

    def operator(self, stack: Stack) -> LaneOperator:
        """The stacked operator."""
        kind = DoraOperator if stack.groups[0].get("dora") else LoraOperator
        return kind(stack)


registry.register(Lora())
