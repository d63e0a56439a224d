"""KaSA: LoRA in the form of an SVD, in the place of a weight's weakest part (arXiv 2412.06071).

y - (x V_r) S_r U_r^T + (alpha / r) (x A) diag(s) B

V_r, S_r and U_r are the r smallest singular components of the frozen map, which are taken out (eq.
6); A, s and B are trained (eq. 7). A is drawn kaiming-uniform(a = sqrt 5), s normal and B is zero,
as released and as in HF `peft`. In training, each map adds (eq. 9-11)

    beta |s|^2 + gamma (|B B^T - I| + |A^T A - I|)

to the loss, Frobenius norms of [r, r] matrices. `peft` does not add it by itself. It writes the
rest into the backbone's weights, in float32; here they stay as they are. Once trained, what is
taken out and what is put in are one LoRA of rank 2 r, which is how `peft` gets it.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import lane_product, product
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
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar

BETA, GAMMA = 1e-4, 1e-3
"""The authors' values for GLUE."""


class KasaOperator(LaneOperator):
    """Stacked A [k, d_in, r], s [k, r] and B [k, r, d_out].

    Padded ranks stay zero: A's columns, s and B's rows are zero there and meet each other alone,
    in the output as in the loss, so that their gradients are exactly zero.

    Attributes:
        own: [k, r], 0 where a lane is padded.
    """

    A: Tensor
    s: Tensor
    B: Tensor
    scale: Tensor
    own: Tensor
    beta: Tensor
    gamma: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        ranks = torch.tensor(stack.ints("rank"))
        self._rank = int(ranks.max())
        scales = [float(group["alpha"]) / int(group["rank"]) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.register_buffer("own", (torch.arange(self._rank) < ranks.unsqueeze(1)).double())
        for parameter in ("beta", "gamma"):
            values = stack.floats(parameter)
            self.register_buffer(parameter, torch.tensor(values, dtype=torch.float64))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """-(x V_r) S_r U_r^T + (alpha / r) (x A) diag(s) B."""
        svd = self.frozen.svd(self.A)
        start = len(svd.values) - self._rank
        weakest = svd.values[start:] * self.own.flip(1).to(svd.values.dtype)
        within = product(x.flatten(1, 2), svd.inputs[:, start:]) * weakest.unsqueeze(1)
        taken = product(within, svd.outputs[:, start:].T)
        low = lane_product(self.dropout(x, call).flatten(1, 2), self.A)
        scaled = self.s * self.scale.to(self.s.dtype).unsqueeze(1)
        made = lane_product(low * scaled.unsqueeze(1), self.B)
        return (made - taken).view(*x.shape[:3], -1)

    def auxiliary_loss(self) -> Tensor:
        """beta |s|^2 + gamma (|B B^T - I| + |A^T A - I|)."""
        one = torch.diag_embed(self.own)
        across = lane_product(self.B, self.B.transpose(1, 2)) - one
        along = lane_product(self.A.transpose(1, 2), self.A) - one
        apart = torch.linalg.matrix_norm(across) + torch.linalg.matrix_norm(along)
        loss: Tensor = self.beta * self.s.square().sum(1) + self.gamma * apart
        return loss


class Kasa(OnLinearMaps):
    """The method `kasa`."""

    operator_type = KasaOperator
    schema = MethodSchema(
        name="kasa",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
            ParameterSchema("beta", "float", default=BETA, minimum=0.0),
            ParameterSchema("gamma", "float", default=GAMMA, minimum=0.0),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Wang et al. 2024, KaSA, arXiv 2412.06071; juyongjiang/KaSA; HF peft's KasaConfig"
    identity = "near: the r smallest singular components of every weight are taken out"
    peft_type = "LORA"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Ranks below the map's own, of which one component must stay."""
        return range(1, min(place.d_in, place.d_out)) if name == "rank" else None

    def count(self, group: Group, place: Place) -> int:
        """r (d_in + d_out + 1)."""
        return int(group["rank"]) * (place.d_in + place.d_out + 1)

    def frozen_work(self, group: Group, place: Place) -> int:
        """The components that are taken out."""
        return int(group["rank"]) * (place.d_in + place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, x A, before and behind s; U, S and V, which all lanes share; parts of the sum."""
        shared = min(place.d_in, place.d_out) * (place.d_in + place.d_out + 1)
        return Kept(2 * int(group["rank"]), shared=shared, running=place.d_out)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A uniform in +-1/sqrt(d_in), s N(0, 1), B zero."""
        rank, bound = int(group["rank"]), 1.0 / math.sqrt(place.d_in)
        a = torch.empty(place.d_in, rank).uniform_(-bound, bound, generator=start.draw("A"))
        s = torch.randn(rank, generator=start.draw("s"))
        return {"A": a, "s": s, "B": torch.zeros(rank, place.d_out)}

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """(alpha / r) A diag(s) beside -V_r S_r, and B above U_r^T."""
        svd, rank = frozen.svd(), int(group["rank"])
        taken = svd.inputs[:, -rank:] * svd.values[-rank:]
        made = tensors["A"] * tensors["s"] * (float(group["alpha"]) / rank)
        return torch.cat([made, -taken], 1), torch.cat([tensors["B"], svd.outputs[:, -rank:].T])

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack."""
        return size_class(int(group["rank"]))


registry.register(Kasa())
