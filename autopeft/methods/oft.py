"""OFT: a linear map's input is rotated, block by block (arXiv 2306.07280, 2311.06243).

y' = (x R) W + b, R block-diagonal, every block R_i = (I - Q_i) (I + Q_i)^-1 of a skew-symmetric
Q_i: Cayley's transform. Q starts at zero, where R is the identity. A rotation keeps the angles
between W's columns, and their norms.

HF `peft` 0.21 computes the same where its `use_cayley_neumann` is off; by default it approximates
the inverse by five terms of a series, so that R is orthogonal for small Q alone. The papers rotate
the outputs of convolutions; on linear maps `peft` and the authors' later releases rotate inputs.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import Call, LaneOperator, Place, Stack
from autopeft.methods.orthogonal import blockwise, turn
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class OftOperator(LaneOperator):
    """Stacked Q [k, n, b (b - 1) / 2], the entries above the diagonals of n blocks, or of one.

    Lanes of one block size have tensors of one size: there is no padding.
    """

    Q: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._size = int(stack.groups[0]["block_size"])

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x (R - I) W."""
        moved = blockwise(x.flatten(1, 2), turn(self.Q, self._size))
        return self.frozen.product(moved).view(*x.shape[:3], -1)


class Oft(OnLinearMaps):
    """The method `oft`."""

    operator_type = OftOperator
    schema = MethodSchema(
        name="oft",
        size="block_size",
        parameters=(
            ParameterSchema("block_size", "int", minimum=2),
            ParameterSchema("share", "bool", default=False),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Qiu et al. 2023, OFT, arXiv 2306.07280; Liu et al. 2023, arXiv 2311.06243"
    identity = "exact"
    peft_type = "OFT"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Block sizes that divide the input."""
        return divisors(place.d_in)[1:] if name == "block_size" else None

    def count(self, group: Group, place: Place) -> int:
        """n b (b - 1) / 2, n = d_in / b blocks, or one where they share it."""
        size = int(group["block_size"])
        return (1 if group["share"] else place.d_in // size) * (size * (size - 1) // 2)

    def frozen_work(self, group: Group, place: Place) -> int:
        """W once more, and the rotation."""
        rotation = place.d_in * int(group["block_size"]) - self.count(group, place)
        return place.d_in * place.d_out + rotation

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, block by block; R, Q and what solves for it; x R by blocks and by rows."""
        size = int(group["block_size"])
        matrices = 4 * size * (size if group["share"] else place.d_in)
        if group["share"]:
            return Kept(weights=matrices)
        return Kept(place.d_in, reads=False, weights=matrices, running=2 * place.d_in)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Q zero."""
        size = int(group["block_size"])
        blocks = 1 if group["share"] else place.d_in // size
        return {"Q": torch.zeros(blocks, size * (size - 1) // 2)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """R W."""
        moved = turn(tensors["Q"], int(group["block_size"])).unsqueeze(0)
        change = blockwise(frozen.weight.T.unsqueeze(0), moved.transpose(2, 3))[0].T
        return DenseMap(frozen.weight + change, frozen.bias)

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Of `OFTConfig`: its blocks are given by their size, and its series is off."""
        size, share = group["block_size"], group["share"]
        return {"r": 0, "oft_block_size": size, "block_share": share, "use_cayley_neumann": False}

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """Of `OFTConfig`: blocks by their size, without its series, limits and dropout."""
        other = config["use_cayley_neumann"] or config["coft"] or config["module_dropout"]
        if other or not (config["init_weights"] and config["oft_block_size"]):
            return None
        size = int(str(config["oft_block_size"]))
        return {"block_size": size, "share": bool(config["block_share"])}

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """The same, under another name."""
        return {"oft_R.weight": tensors["Q"]}

    def stack_key(self, group: Group) -> Hashable:
        """One block size, shared or not."""
        return group["block_size"], group["share"]


registry.register(Oft())
