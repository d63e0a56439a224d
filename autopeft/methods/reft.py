"""ReFT: hidden states are edited in a small subspace, at chosen tokens (arXiv 2404.03592).

At a layer's output h, R [r, d] with orthonormal rows, W [d, r], b [r]:
  loreft  h + R^T (h W + b - R h)      the subspace gets the values that h W + b says
  direft  h + R^T (h W + b)            the same without the difference
R is free where `orthonormal` is false: loreft is then the paper's NoReFT, and direft is DiReFT as
the paper's text has it; its release (pyreft) keeps R orthonormal there too, and so does the
default. `positions: ends` edits the `first` and the `last` real tokens of every row, each once and
all with one set of weights (the release's `share_weights`); `all` edits all of them.

An orthonormal R is trained as r Householder vectors, as torch's `parametrizations.orthogonal` does
for pyreft. As there, W and b start as torch draws a Linear, and dropout falls on the edited hidden
states, not on the edit.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Reached, Start, registry
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

KINDS = ("loreft", "direft")
POSITIONS = ("ends", "all")


class ReftOperator(LaneOperator):
    """Stacked R^T or its Householder vectors [k, d, r], W [k, d, r], b [k, r].

    Padded columns of R, W and b are zero, and R's are cut off after they are made of padded
    Householder vectors, so that no gradient reaches any of them: each column of R depends on its
    own and on earlier vectors alone.
    """

    hook = "output"
    rotation: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._differs = stack.groups[0]["kind"] == "loreft"
        self._orthonormal = bool(stack.groups[0]["orthonormal"])
        ranks = torch.tensor(stack.ints("rank"))
        self.register_buffer("own", torch.arange(int(ranks.max())) < ranks[:, None])
        self.dropout = LaneDropout.of(stack)
        self._drops = any(stack.floats("dropout"))
        self._everywhere = all(group["positions"] == "all" for group in stack.groups)
        whole = [group["positions"] == "all" for group in stack.groups]
        for end in ("first", "last"):
            counts = [int(group.get(end) or 0) for group in stack.groups]
            self.register_buffer(end, torch.tensor(counts)[:, None, None])
        self.register_buffer("whole", torch.tensor(whole)[:, None, None])

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the edit changes at the chosen tokens."""
        rows, h = self.rows(), y.flatten(1, 2)
        source = self.weight - rows if self._differs else self.weight
        low = lane_product(h, source, self.bias)
        change = lane_product(low, rows.transpose(1, 2)).view(y.shape)
        if self._drops and call.training:
            change = self.dropout(y + change, call) - y
        if self._everywhere:
            return change
        return change * self.chosen(y.shape[2], call).unsqueeze(3)

    def rows(self) -> Tensor:
        """R^T [k, d, r]."""
        if not self._orthonormal:
            return self.rotation
        with torch.autocast(self.rotation.device.type, enabled=False):
            return orthonormal(self.rotation) * self.get_buffer("own").unsqueeze(1)

    def chosen(self, tokens: int, call: Call) -> Tensor:
        """Which tokens of which rows are edited, bool [k, B, tokens].

        Hidden states may be fewer than the rows' tokens, the first of them, or hold others behind.
        """
        if call.mask is None:
            raise RuntimeError(f"{self.name} was called without the rows' lengths")
        lengths = call.mask.sum(1)[None, :, None]
        at = torch.arange(tokens, device=lengths.device)
        first, last = self.get_buffer("first"), self.get_buffer("last")
        ends = ((at < first) | (at >= lengths - last)) & (at < lengths)
        return ends | self.get_buffer("whole")


def orthonormal(vectors: Tensor) -> Tensor:
    """The first r columns of the product of r Householder reflections, [k, d, r].

    Vector i has a one at i and below it what is given, the rest of `vectors` means nothing. With
    all vectors in V, the product is I - V S^-1 V^T, where S is the upper half of V^T V with half
    its diagonal.
    """
    size = vectors.shape[-1]
    one = torch.eye(*vectors.shape[-2:], dtype=vectors.dtype, device=vectors.device)
    v = vectors.tril(-1) + one
    products = lane_product(v.transpose(-2, -1), v)
    half = torch.diag_embed(products.diagonal(dim1=-2, dim2=-1) / 2.0)
    solved = torch.linalg.solve_triangular(
        products.triu(1) + half, v[..., :size, :].transpose(-2, -1), upper=True
    )
    columns: Tensor = one - lane_product(v, solved)
    return columns


class Reft(Unfolded):
    """The method `reft`."""

    operator_type = ReftOperator
    schema = MethodSchema(
        name="reft",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("kind", "str", default="loreft", choices=KINDS),
            ParameterSchema("orthonormal", "bool", default=True),
            ParameterSchema("positions", "str", default="ends", choices=POSITIONS),
            ParameterSchema("first", "int", default=4, minimum=0, when=("positions", "ends")),
            ParameterSchema("last", "int", default=4, minimum=0, when=("positions", "ends")),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
    )
    source = "Wu et al. 2024, ReFT, arXiv 2404.03592; stanfordnlp/pyreft"
    reached: Reached = "nothing"
    stands_for: tuple[str, ...] = ("output", "down")
    identity = "no: W starts as a random Linear, as released, so that the edit is not zero"

    def carried_by(self, anatomy: Anatomy) -> str:
        """Any backbone with layers."""
        return ""

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """The output of every layer."""
        return layer_places(group, anatomy)

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """A subspace that is larger than all of it; no tokens at all."""
        faults = []
        if int(group["rank"]) > anatomy.hidden_size:
            allowed = f"1 to {anatomy.hidden_size}, the hidden size"
            faults.append(Fault("configuration", "reft.rank", str(group["rank"]), allowed))
        if group["positions"] == "ends" and not (group["first"] or group["last"]):
            given = "0 first and 0 last tokens"
            allowed = "at least one token, or positions: all"
            faults.append(Fault("configuration", "reft.first", given, allowed))
        return faults

    def count(self, group: Group, place: Place) -> int:
        """r (2 d + 1)."""
        return int(group["rank"]) * (place.d_in + place.d_out + 1)

    training_count = count

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """h, and its edit in the subspace; R and W - R."""
        rank = int(group["rank"])
        return Kept(rank, of_output=True, weights=3 * rank * place.d_in)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """R Haar-random up to signs, or N(0, 1 / d) where it is free; W and b as in a Linear."""
        rank, d = int(group["rank"]), place.d_in
        drawn = torch.randn(d, rank, generator=start.draw("rotation"))
        if group["orthonormal"]:
            drawn = torch.geqrf(drawn.double())[0].tril(-1).float()
        else:
            drawn /= d**0.5
        return {
            "rotation": drawn,
            "weight": kaiming(d, (d, rank), start.draw("weight")),
            "bias": kaiming(d, (rank,), start.draw("bias")),
        }

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class and one kind stack, whatever their tokens."""
        return size_class(int(group["rank"])), group["kind"], group["orthonormal"]


registry.register(Reft())
