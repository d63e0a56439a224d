"""BOFT: a linear map's input is rotated by a butterfly of blocks, its output scaled (2311.06243).

y' = ((x B_m ... B_1) W) s + b. Every factor B_i rotates blocks of b channels as OFT does; those of
B_1 are neighbours, those of B_i two runs of b / 2 channels that lie 2^(i - 2) b apart, so that m
factors mix 2^(m - 1) b channels. Their skew-symmetric Q start at zero and the scales s at one,
where the map is as it was. With one factor it is OFT with scales.

It is what HF `peft` computes, whose config counts factors likewise: with one factor everywhere,
with more of them only where it can compile an extension for GPUs; elsewhere it drops them without
an error. It trains all b x b entries of a Q of which it reads the skew-symmetric half. Scales act
on what the frozen map and the methods before it in the alphabet have made, without the bias.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import Call, LaneOperator, Place, Stack
from autopeft.methods.orthogonal import blockwise, skew, turn
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class BoftOperator(LaneOperator):
    """Stacked Q [k, m, n, b (b - 1) / 2], entries above diagonals, and scales s [k, d_out].

    Lanes have one block size and number of factors: there is no padding.
    """

    Q: Tensor
    s: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._size = int(stack.groups[0]["block_size"])

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """s p + (s - 1) z, p what the rotation adds to x W, and z the output without its bias."""
        rows, scale, bias = x.flatten(1, 2), self.s.unsqueeze(1), self.frozen.bias
        moved = self.frozen.product(rotated(rows, self.Q, self._size) - rows)
        made = y.flatten(1, 2) if bias is None else y.flatten(1, 2) - bias
        return (scale * moved + (scale - 1.0) * made.clone()).view(*x.shape[:3], -1)


def rotated(x: Tensor, q: Tensor, size: int) -> Tensor:
    """x B_m ... B_1, [k, R, d_in]."""
    turns = turn(q, size)
    for factor in reversed(range(q.shape[1])):
        apart = _gathered(x, 2, 1 << factor, size)
        change = blockwise(apart, turns[:, factor])
        x = x + _gathered(change, 1 << factor, 2, size)
    return x


def _gathered(x: Tensor, runs: int, parts: int, size: int) -> Tensor:
    """`parts` interleaved runs of b / 2 channels, one behind the other, made `runs` of them."""
    if min(runs, parts) == 1:
        return x
    pieces = x.reshape(*x.shape[:2], -1, runs, parts, size // 2)
    return pieces.transpose(-3, -2).reshape(x.shape)


class Boft(OnLinearMaps):
    """The method `boft`."""

    operator_type = BoftOperator
    schema = MethodSchema(
        name="boft",
        size="block_size",
        parameters=(
            ParameterSchema("block_size", "int", minimum=2),
            ParameterSchema("factors", "int", default=1, minimum=1),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Liu et al. 2023, BOFT, arXiv 2311.06243; HF peft's BOFT"
    identity = "exact"
    peft_type = "BOFT"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Even block sizes that divide the input."""
        if name != "block_size":
            return None
        return tuple(each for each in divisors(place.d_in) if each % 2 == 0)

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Such block sizes, and more factors than the input has blocks for."""
        faults = super().faults(group, anatomy)
        size, factors = int(group["block_size"]), int(group["factors"])
        for place in self.places(group, anatomy) if not faults else []:
            most = 1
            while place.d_in % (size << most) == 0:
                most += 1
            if factors > most:
                where = f"layer {place.layer}, {place.site}"
                given = f"{factors} at {where}, blocks of {size} in {place.d_in}"
                faults.append(Fault("configuration", "boft.factors", given, f"1 to {most}"))
        return faults

    def count(self, group: Group, place: Place) -> int:
        """m n b (b - 1) / 2 with n = d_in / b blocks, and d_out scales."""
        size = int(group["block_size"])
        blocks = int(group["factors"]) * (place.d_in // size)
        return blocks * (size * (size - 1) // 2) + place.d_out

    def frozen_work(self, group: Group, place: Place) -> int:
        """W once more, and the rotations."""
        rotations = int(group["factors"]) * place.d_in * int(group["block_size"])
        return place.d_in * place.d_out + rotations - (self.count(group, place) - place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x before every factor, block by block, and both parts of the output; Q, R."""
        size, factors = int(group["block_size"]), int(group["factors"])
        matrices = 4 * factors * place.d_in * size
        return Kept(factors * place.d_in, reads=False, weights=matrices, exact=2 * place.d_out)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Q zero, scales one."""
        size, factors = int(group["block_size"]), int(group["factors"])
        q = torch.zeros(factors, place.d_in // size, size * (size - 1) // 2)
        return {"Q": q, "s": torch.ones(place.d_out)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """B_m ... B_1 W, its columns scaled."""
        one = torch.eye(place.d_in).to(frozen.weight).unsqueeze(0)
        rotation = rotated(one, tensors["Q"].unsqueeze(0), int(group["block_size"]))[0]
        return DenseMap(rotation @ frozen.weight * tensors["s"], frozen.bias)

    def peft_lacks(self, group: Group, anatomy: Anatomy) -> str:
        """More factors than one: without its compiled extension for GPUs, `peft` drops them."""
        one = int(group["factors"]) == 1
        return "" if one else "several factors, which HF peft drops where it has no CUDA compiler"

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Of `BOFTConfig`: its blocks are given by their size."""
        return {
            "boft_block_size": group["block_size"],
            "boft_block_num": 0,
            "boft_n_butterfly_factor": group["factors"],
        }

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """Of `BOFTConfig`: blocks by their size, one factor, without dropout."""
        size, factors = config["boft_block_size"], config["boft_n_butterfly_factor"]
        if config["boft_dropout"] or factors != 1 or not (config["init_weights"] and size):
            return None
        return {"block_size": int(str(size)), "factors": 1}

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """Q as whole matrices, and scales with an axis more."""
        size = int(group["block_size"])
        return {"boft_R": skew(tensors["Q"], size), "boft_s": tensors["s"].unsqueeze(1)}

    def stack_key(self, group: Group) -> Hashable:
        """One block size, one number of factors."""
        return group["block_size"], group["factors"]


registry.register(Boft())
