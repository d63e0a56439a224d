"""SURM: structured changes of W that are of full rank with 2 n parameters (arXiv 2406.17740).

The change is `scale` times one of

| structure   | matrix y' = M x                                         | trained           |
| ----------- | ------------------------------------------------------- | ----------------- |
| `circulant` | M_ij = c_(i - j mod n), c = a * b                       | a, b [n]          |
| `toeplitz`  | T(b) T(a), T(v)_ij = v_abs(i - j)                       | a, b [n]          |
| `ldr`       | sum of Circ(c_t) Skew(d_t), the Toeplitz-like matrices  | c, d [terms, n]   |
| `kronecker` | A (x) B, A [r, d_in / r], B [d_out / r, r]              | A, B              |

Skew(d) is circulant but for the sign of what wraps around. All but the last need as many outputs
as inputs, and are applied by FFT in n log n. a and A are drawn, b, c and B are zero, as released
(arijitthegame/structured-matrices-PEFT; A, of which nothing is said, as in LoRA). Once trained, a
circulant is its kernel c alone: `factored: false` trains that from the start, and HF `peft`'s C3A
holds it as one block. The released adapters between activations are not among these.
"""

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor, fft

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps, divisors
from autopeft.methods.lane_operator import Call, LaneDropout, LaneOperator, Place, Stack
from autopeft.methods.lora import kaiming
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar

SQUARE = ("circulant", "toeplitz", "ldr")
SMALL = 0.02
"""Standard deviation of what is drawn for `toeplitz` and `ldr`."""

Tensors = Mapping[str, Tensor]


class SurmOperator(LaneOperator):
    """Stacked tensors of one structure; all lanes have the same shapes, there is no padding."""

    matrix_names = ("a", "b", "kernel")
    scale: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._times = TIMES[str(stack.groups[0]["structure"])]
        scales = torch.tensor(stack.floats("scale"), dtype=torch.float64)
        self.register_buffer("scale", scales)
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """scale M x."""
        trained = {name: self.get_parameter(name).unsqueeze(1) for name in self.stacked_names}
        with torch.autocast(x.device.type, enabled=False):  # there is no FFT in bfloat16
            made = self._times(trained, self.dropout(x, call).flatten(1, 2))
            return (made * self.scale[:, None, None]).view(*x.shape[:3], -1)


# -- products with x [k, R, d_in]; tensors are [k, 1, ...] ---------------------------------------


def _circulant(t: Tensors, x: Tensor) -> Tensor:
    return _circular(t["kernel"] if "kernel" in t else t["a"] * t["b"], x)


def _toeplitz(t: Tensors, x: Tensor) -> Tensor:
    return _symmetric(t["b"], _symmetric(t["a"], x))


def _ldr(t: Tensors, x: Tensor) -> Tensor:
    return _circular(t["c"], _skew(t["d"], x.unsqueeze(-2))).sum(-2)


def _kronecker(t: Tensors, x: Tensor) -> Tensor:
    (k, rows, _), a, b = x.shape, t["A"].squeeze(1), t["B"].squeeze(1)
    rank = b.shape[2]
    parts = x.reshape(k, rows, -1, rank).transpose(2, 3)
    low = lane_product(parts.reshape(k, rows * rank, -1), a.transpose(1, 2))  # A first: r^2 a row
    turned = low.view(k, rows, rank, rank).transpose(2, 3).reshape(k, rows * rank, rank)
    return lane_product(turned, b.transpose(1, 2)).view(k, rows, -1)


def _circular(kernel: Tensor, x: Tensor) -> Tensor:
    """Circ(kernel) x."""
    made: Tensor = fft.irfft(fft.rfft(kernel) * fft.rfft(x), n=x.shape[-1])
    return made


def _skew(kernel: Tensor, x: Tensor) -> Tensor:
    """Skew(kernel) x: a circular product of both, turned by e^(i pi m / n), and turned back."""
    n = x.shape[-1]
    angle = torch.arange(n, device=x.device, dtype=x.dtype) * (torch.pi / n)
    turn = torch.polar(torch.ones_like(angle), angle)
    made: Tensor = fft.ifft(fft.fft(kernel * turn) * fft.fft(x * turn)) * turn.conj()
    return made.real


def _symmetric(v: Tensor, x: Tensor) -> Tensor:
    """T(v) x: the leading part of a circular product of at least twice the length."""
    n = x.shape[-1]
    length = 1 << (2 * n - 2).bit_length()
    gap = v.new_zeros(*v.shape[:-1], length - 2 * n + 1)
    around = torch.cat([v, gap, v[..., 1:].flip(-1)], dim=-1)
    made: Tensor = fft.irfft(fft.rfft(around) * fft.rfft(x, n=length), n=length)
    return made[..., :n]


TIMES: Mapping[str, Callable[[Tensors, Tensor], Tensor]] = {
    "circulant": _circulant,
    "toeplitz": _toeplitz,
    "ldr": _ldr,
    "kronecker": _kronecker,
}


class Surm(OnLinearMaps):
    """The method `surm`."""

    operator_type = SurmOperator
    schema = MethodSchema(
        name="surm",
        size="",
        parameters=(
            ParameterSchema("structure", "str", default="circulant", choices=tuple(TIMES)),
            ParameterSchema("factored", "bool", default=True, when=("structure", "circulant")),
            ParameterSchema("terms", "int", default=1, minimum=1, when=("structure", "ldr")),
            ParameterSchema("rank", "int", default=4, minimum=1, when=("structure", "kronecker")),
            ParameterSchema("scale", "float", default=1.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Sehanobish et al. 2024, Structured Unrestricted-Rank Matrices, arXiv 2406.17740"
    identity = "exact"
    peft_type = "C3A"

    def legal(self, name: str, place: Place) -> tuple[Scalar, ...] | None:
        """Structures that the shape allows; Kronecker ranks that divide both widths."""
        if name == "structure":
            return tuple(TIMES) if place.d_in == place.d_out else ("kronecker",)
        return divisors(place.d_in, place.d_out) if name == "rank" else None

    def count(self, group: Group, place: Place) -> int:
        """2 n: d_in + d_out; n for a circulant's kernel; each term's."""
        both = place.d_in + place.d_out
        if group["structure"] == "circulant":
            return place.d_in
        return both * int(group.get("terms") or 1)

    def training_count(self, group: Group, place: Place) -> int:
        """2 n for a circulant in two factors."""
        factors = 2 if group.get("factored") else 1
        return factors * self.count(group, place)

    def frozen_work(self, group: Group, place: Place) -> int:
        """What Kronecker's two products take; those by FFT, n log n, count as what is trained."""
        if group["structure"] != "kronecker":
            return 0
        return (int(group["rank"]) - 1) * (place.d_in + place.d_out)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """What real transforms read, and all that is multiplied: complex numbers.

        x itself for `circulant`; for `kronecker` its parts, and what A makes of them.
        """
        n, structure, terms = place.d_in, str(group["structure"]), int(group.get("terms") or 1)
        padded = 1 << (2 * n - 2).bit_length()
        widths = {
            "kronecker": n + int(group.get("rank") or 0) ** 2,
            "circulant": n + 2,
            "toeplitz": 2 * (padded + padded + 2),
            "ldr": 2 * n + terms * (2 * n + n + 2),
        }
        return Kept(exact=widths[structure], reads=structure == "circulant", reads_exactly=True)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """One factor drawn, the other zero."""
        n, structure = place.d_in, group["structure"]
        if structure == "kronecker":
            rank = int(group["rank"])
            a = kaiming(n // rank, (rank, n // rank), start.draw("A"))
            return {"A": a, "B": torch.zeros(place.d_out // rank, rank)}
        if structure == "ldr":
            shape = int(group["terms"]), n
            return {
                "c": torch.zeros(shape),
                "d": torch.randn(shape, generator=start.draw("d")) * SMALL,
            }
        if not group.get("factored", True):
            return {"kernel": torch.zeros(n)}
        spread = 1.0 if structure == "circulant" else SMALL
        return {"a": torch.randn(n, generator=start.draw("a")) * spread, "b": torch.zeros(n)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W plus what M makes of every unit vector."""
        units = torch.eye(place.d_in).to(frozen.weight)
        trained = {name: tensor[None, None] for name, tensor in tensors.items()}
        change = TIMES[str(group["structure"])](trained, units.unsqueeze(0))[0]
        return DenseMap(frozen.weight + float(group["scale"]) * change, frozen.bias)

    def folded_group(self, group: Group) -> Group:
        """The same with a circulant's kernel in place of its factors."""
        if not group.get("factored"):
            return group
        settings = {**dict(group.settings), "factored": False}
        return Group.of(group.method, group.layers, group.sites, **settings)

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The kernel."""
        if not group.get("factored"):
            return dict(tensors)
        return {"kernel": tensors["a"] * tensors["b"]}

    def peft_lacks(self, group: Group, anatomy: Anatomy) -> str:
        """All but circulants."""
        structure = str(group["structure"])
        return "" if structure == "circulant" else f"structure {structure}"

    def peft_trains(self, group: Group) -> str:
        """A kernel as a multiple of this one: AdamW's steps are smaller by as much."""
        return "by steps that are the map's width times smaller, with no factors and no dropout"

    def peft_module_settings(
        self, modules: Mapping[str, tuple[Group, Place]]
    ) -> Mapping[str, object]:
        """One block: all square maps of a backbone are as wide as its hidden states."""
        return {"block_size": next(place.d_in for _, place in modules.values())}

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """Its blocks are correlations y_i = (1 / n) sum of w_(j - i) x_j: w_m is n scale c_-m."""
        kernel = self.folded_tensors(group, tensors)["kernel"]
        turned = kernel.flip(0).roll(1) * (place.d_in * float(group["scale"]))
        return {"c3a_kernel": turned.view(1, 1, -1)}

    def stack_key(self, group: Group) -> Hashable:
        """One structure with one number of factors, terms or parts."""
        own = (group.get(name) for name in ("factored", "terms", "rank"))
        return group["structure"], *own


registry.register(Surm())
