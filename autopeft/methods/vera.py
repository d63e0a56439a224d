"""VeRA: frozen random factors, shared by all, between two trained vectors (arXiv 2310.11454).

y + b * (B (d * (A x))), A [r, d_in] and B [d_out, r] frozen; d starts at `initial` and b at zero.
As in the paper and in `peft`, every map of a model uses the leading part of the same two matrices,
kaiming-uniform; here they are those of every lane, study and machine: entries of one fixed stream
of numbers, of which rank r takes the first r rows, so that nothing of them is stored.

The stream is NumPy's legacy generator, whose numbers never change between releases. (`peft` draws
with torch's: its matrices are others, of the same law.)
"""

from collections.abc import Hashable, Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.products import product
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

INPUT_SEED, OUTPUT_SEED = 20231017, 11454
KAIMING = 6.0**0.5
"""A kaiming-uniform entry lies in +- this / sqrt(fan-in)."""


class VeraOperator(LaneOperator):
    """Stacked d [k, r] and b [k, d_out]; frozen factors of the largest rank, for all lanes.

    What a lane has beyond its own rank is multiplied by zero, so that d gets no gradient there.

    Attributes:
        inputs: A^T [d_in, r].
        outputs: B^T [r, d_out], entries in +-1.
        scale: [k, r], the bound of B's entries, which depends on a lane's rank; 0 beyond it.
    """

    d: Tensor
    b: Tensor
    inputs: Tensor
    outputs: Tensor
    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        ranks = torch.tensor(stack.ints("rank")).unsqueeze(1)
        most = int(ranks.max())
        inputs, outputs = (
            directions(INPUT_SEED, most, stack.place.d_in),
            directions(OUTPUT_SEED, most, stack.place.d_out),
        )
        self.register_buffer("inputs", inputs.T * (KAIMING * stack.place.d_in**-0.5))
        self.register_buffer("outputs", outputs)
        self.register_buffer(
            "scale", KAIMING * ranks.double() ** -0.5 * (torch.arange(most) < ranks).double()
        )
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """b * ((d * (x A)) B)."""
        low = product(self.dropout(x, call), self.inputs)
        scaled = low * (self.d * self.scale)[:, None, None]
        return product(scaled, self.outputs) * self.b[:, None, None]


def directions(seed: int, rank: int, width: int) -> Tensor:
    """The leading [rank, width] part of an endless matrix of entries in [-1, 1), float64."""
    rows = [_row(seed, row, size_class(width))[:width] for row in range(rank)]
    return torch.from_numpy(np.stack(rows))


@lru_cache(maxsize=4096)
def _row(seed: int, row: int, width: int) -> NDArray[np.float64]:
    """A row of it; a wider one begins with the same numbers."""
    return np.random.RandomState([seed, row]).uniform(-1.0, 1.0, width)


class Vera(OnLinearMaps):
    """The method `vera`."""

    operator_type = VeraOperator
    schema = MethodSchema(
        name="vera",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("initial", "float", default=0.1),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Kopiczko et al. 2023, VeRA, arXiv 2310.11454"
    identity = "exact"
    peft_type = "LORA"

    def count(self, group: Group, place: Place) -> int:
        """r + d_out."""
        return int(group["rank"]) + place.d_out

    def frozen_work(self, group: Group, place: Place) -> int:
        """Both frozen factors."""
        return int(group["rank"]) * (place.d_in + place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x A and what B makes of it; no x, whose factor is frozen."""
        rank = int(group["rank"])
        shared = rank * (place.d_in + place.d_out)
        return Kept(rank + place.d_out, reads=False, shared=shared)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """d as `initial` says, b zero."""
        d = torch.full((int(group["rank"]),), float(group["initial"]))
        return {"d": d, "b": torch.zeros(place.d_out)}

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """A diag(d) and B diag(b)."""
        rank, like = int(group["rank"]), frozen.weight
        a = directions(INPUT_SEED, rank, place.d_in).to(like) * (KAIMING * place.d_in**-0.5)
        b = directions(OUTPUT_SEED, rank, place.d_out).to(like) * (KAIMING * rank**-0.5)
        return a.T * tensors["d"], b * tensors["b"]

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class stack."""
        return size_class(int(group["rank"]))


registry.register(Vera())
