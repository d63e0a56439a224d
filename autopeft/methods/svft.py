"""SVFT: a few entries between W's own singular vectors are trained (arXiv 2405.19597).

y + g (x V) M^T U^T, with the frozen SVD W^T = U S V^T of the map y = W^T x (eq. 1) and M [n, n],
n = min(d_in, d_out), trained where a fixed pattern says and zero elsewhere:

- `plain`: the main diagonal, so that singular values alone change; that is one band.
- `banded`: the main diagonal and w - 1 others on each side of it, w `bands`.
- `random`: as many entries as w bands have, by chance.
- `top_k`: as many entries (i, j), where |u_i . v_j| is largest; input and output must be equally
  wide. The paper ranks u_i . v_j itself, whose sign an SVD leaves open.

g = sigmoid(gate) with one trained gate a map, 0 at the start, as released (VijayLingam95/SVFT). M
starts at zero, as in the paper, so the configured model is the backbone; the released code draws
it kaiming-normal over the zeros.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, randperm
from torch.nn import functional

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.frozen_maps import Svd
from autopeft.backbone.pointwise import pointwise
from autopeft.backbone.products import lane_product, product
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneOperator, Place, Stack
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar

PATTERNS = ("plain", "banded", "random", "top_k")
BANDED = PATTERNS[:2]
"""Those without an index: where their entries are follows from the number of bands."""


class SvftOperator(LaneOperator):
    """Stacked entries of M, values [k, m], and gates [k, 1].

    Lanes have one pattern and one number of bands: there is no padding.

    Attributes:
        index: int64 [k, m], where the values are in M, row by row; not for bands.
    """

    matrix_names = ("values",)
    values: Tensor
    gate: Tensor
    index: Tensor

    def __init__(self, stack: Stack) -> None:
        self.fixed_names = ("index",) if "index" in stack.tensors[0] else ()
        super().__init__(stack)
        self._rank = min(stack.place.d_in, stack.place.d_out)
        self._bands = int(stack.groups[0]["bands"])

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """g (x V) M^T U^T; keeps x V."""
        svd = self.frozen.svd(self.values)
        within = product(x.flatten(1, 2), svd.inputs)
        values = pointwise(torch.sigmoid, self.gate) * self.values
        if self.fixed_names:
            made = lane_product(within, _spread(values, self.index, self._rank).transpose(1, 2))
        else:
            made = _banded(within, values, self._bands)
        return product(made, svd.outputs.T).view(*x.shape[:3], -1)


def _spread(values: Tensor, index: Tensor, rank: int) -> Tensor:
    """M [k, n, n] of its entries [k, m]."""
    dense = values.new_zeros(len(values), rank * rank)
    return dense.scatter(1, index, values).view(-1, rank, rank)


def _banded(x: Tensor, values: Tensor, bands: int) -> Tensor:
    """x M^T, [k, R, n], of M's diagonals, the lowest first, one behind the other in [k, m]."""
    rank, start = x.shape[-1], 0
    parts = []
    for offset in range(1 - bands, bands):
        length = rank - abs(offset)
        diagonal = values[:, start : start + length].unsqueeze(1)
        first, low = max(0, offset), max(0, -offset)
        part = x[..., first : first + length] * diagonal
        parts.append(functional.pad(part, (low, rank - low - length)))
        start += length
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def entries(bands: int, rank: int) -> int:
    """Entries of M on its w diagonals from the main one up, and as many below."""
    return rank * (2 * bands - 1) - bands * (bands - 1)


class Svft(OnLinearMaps):
    """The method `svft`."""

    operator_type = SvftOperator
    schema = MethodSchema(
        name="svft",
        size="bands",
        parameters=(
            ParameterSchema("bands", "int", default=1, minimum=1),
            ParameterSchema("pattern", "str", default="banded", choices=PATTERNS),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Lingam et al. 2024, SVFT, arXiv 2405.19597; VijayLingam95/SVFT"
    identity = "exact"

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """Bands up to the map's rank; `top_k` on square maps."""
        if name == "bands":
            return range(1, min(place.d_in, place.d_out) + 1)
        return PATTERNS if place.d_in == place.d_out else PATTERNS[:-1]

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Such bands and patterns, and more bands than the one of `plain`."""
        faults, bands = super().faults(group, anatomy), int(group["bands"])
        if group["pattern"] == "plain" and bands > 1:
            hint = "pattern: banded has more"
            given = f"{bands} with pattern plain"
            faults.append(Fault("configuration", "svft.bands", given, "1", hint))
        return faults

    def count(self, group: Group, place: Place) -> int:
        """n (2 w - 1) - w (w - 1) entries and a gate."""
        return entries(int(group["bands"]), min(place.d_in, place.d_out)) + 1

    def fixed_count(self, group: Group, place: Place) -> int:
        """Where the entries are, unless they are bands."""
        return 0 if group["pattern"] in BANDED else self.count(group, place) - 1

    def frozen_work(self, group: Group, place: Place) -> int:
        """U and V; M as a whole, unless it is banded."""
        rank = min(place.d_in, place.d_out)
        factors = rank * (place.d_in + place.d_out)
        return factors if group["pattern"] in BANDED else factors + rank * rank

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x V; M; U, S and V, which all lanes share; while it runs every part twice, a sum."""
        rank = min(place.d_in, place.d_out)
        shared = rank * (place.d_in + place.d_out + 1)
        if group["pattern"] in BANDED:
            parts = 2 * int(group["bands"]) - 1
            return Kept(rank, reads=False, shared=shared, running=2 * (parts + 1) * rank)
        return Kept(rank, reads=False, shared=shared, weights=rank * rank)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """M and gate zero, and the entries that were chosen."""
        number = self.count(group, place) - 1
        tensors = {"values": torch.zeros(number), "gate": torch.zeros(1)}
        if group["pattern"] in BANDED:
            return tensors
        index = start.saved.get("index")
        if index is None:
            index = _chosen(str(group["pattern"]), number, place, start)
        return tensors | {"index": index.long()}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W + g V M^T U^T."""
        svd, values = frozen.svd(), tensors["values"].unsqueeze(0)
        rank, values = len(svd.values), torch.sigmoid(tensors["gate"]) * values
        if "index" in tensors:
            m = _spread(values, tensors["index"].long().unsqueeze(0), rank)
        else:
            one = torch.eye(rank, dtype=values.dtype, device=values.device)
            m = _banded(one.unsqueeze(0), values, int(group["bands"])).transpose(1, 2)
        change = svd.inputs @ m[0].T @ svd.outputs.T
        return DenseMap(frozen.weight + change, frozen.bias)

    def stack_key(self, group: Group) -> Hashable:
        """One pattern, one number of bands; `plain` is one band."""
        pattern = "banded" if group["pattern"] in BANDED else group["pattern"]
        return pattern, group["bands"]


def _chosen(pattern: str, number: int, place: Place, start: Start) -> Tensor:
    """Flat positions in M, ascending; of equal scores, those that come first."""
    rank = min(place.d_in, place.d_out)
    if pattern == "random":
        order = randperm(rank * rank, generator=start.draw("index"))
    else:
        svd: Svd = start.frozen(place.layer, place.site).svd_on_cpu()
        order = (svd.outputs.T @ svd.inputs).abs().ravel().argsort(descending=True, stable=True)
    return order[:number].sort().values


registry.register(Svft())
