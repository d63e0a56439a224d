"""WaveFT: a few coefficients of the change of W's wavelet transform are trained.

The change [d_out, d_in] is `scale` times the inverse two-dimensional wavelet transform of a matrix
that is zero but at n places drawn by chance; their values start at zero. As in HF `peft`, places
are drawn with `places_seed` alone: the first n of one order for all maps of a shape. The
transform has one level, coefficients lie in quarters (means, and to their right differences along
outputs; below, differences along inputs, and along both), and an odd side gets one more. The
wavelet is Haar's (`db1`, `peft`'s default), each coefficient of which reaches 2 x 2 weights.
"""

import re
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, randperm
from torch.nn import functional

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Group
from autopeft.errors import ExportError, Fault
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.dense import DenseOperator, dense_kept
from autopeft.methods.inherited import OnLinearMaps, linear_places
from autopeft.methods.lane_operator import Place, Stack, size_class
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class WaveletOperator(DenseOperator):
    """Stacked values [k, n] at flat places of [d_out, d_in].

    Padding: a padded value is multiplied by `valid`, 0 there, so that its gradient is zero.
    """

    fixed_names = ("index",)
    matrix_names = ("values",)
    values: Tensor
    index: Tensor
    valid: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._place = stack.place
        numbers = torch.tensor([len(own["index"]) for own in stack.tensors])
        used = torch.arange(int(numbers.max())) < numbers.unsqueeze(1)
        scales = torch.tensor(stack.floats("scale"), dtype=torch.float64)
        self.register_buffer("valid", used * scales.unsqueeze(1))

    def change(self, *trained: Tensor) -> Tensor:
        """scale times the transform of the values at their places."""
        (values,) = trained
        return wavelet_change(values * self.valid, self.index, self._place)


def wavelet_change(values: Tensor, index: Tensor, place: Place) -> Tensor:
    """The change [k, d_in, d_out] of coefficients [k, n] at flat places of [d_out, d_in]."""
    rows, columns = place.d_out, place.d_in
    flat = values.new_zeros(len(values), rows * columns).scatter_add(1, index, values)
    even = functional.pad(flat.view(-1, rows, columns), (0, columns % 2, 0, rows % 2))
    smooth, detail = (_taller(*half.chunk(2, dim=2)) for half in even.chunk(2, dim=1))
    whole = _taller(smooth.transpose(1, 2), detail.transpose(1, 2))
    return whole[:, :columns, :rows]


def _taller(smooth: Tensor, detail: Tensor) -> Tensor:
    """Two [k, h, w] -> [k, 2 h, w]: Haar's way back, of neighbours' means and differences."""
    both = torch.stack([smooth + detail, smooth - detail], dim=2)
    made: Tensor = both.flatten(1, 2) * 0.5**0.5
    return made


def _order(group: Group, place: Place) -> Tensor:
    """All flat places of a map [d_out, d_in], in the order in which they are taken."""
    generator = torch.Generator().manual_seed(int(group["places_seed"]))
    return randperm(place.d_in * place.d_out, generator=generator)


class WaveFt(OnLinearMaps):
    """The method `waveft`."""

    operator_type = WaveletOperator
    schema = MethodSchema(
        name="waveft",
        size="coefficients",
        parameters=(
            ParameterSchema("coefficients", "int", minimum=1),
            ParameterSchema("scale", "float", default=25.0),
            ParameterSchema("places_seed", "int", default=777, minimum=0),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Bilican et al. 2025, WaveFT, arXiv 2505.12532; HF peft's WAVEFT"
    identity = "exact"
    peft_type = "WAVEFT"

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """More coefficients than a map has weights."""
        n = int(group["coefficients"])
        return [
            Fault(
                "configuration",
                "waveft.coefficients",
                f"{n} at layer {place.layer}, {place.site}, {place.d_in} x {place.d_out}",
                f"at most {place.d_in * place.d_out}",
            )
            for place in linear_places(group, anatomy)
            if n > place.d_in * place.d_out
        ]

    def count(self, group: Group, place: Place) -> int:
        """n."""
        return int(group["coefficients"])

    def fixed_count(self, group: Group, place: Place) -> int:
        """Their places."""
        return int(group["coefficients"])

    def frozen_work(self, group: Group, place: Place) -> int:
        """The change is as large as W."""
        return place.d_in * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x."""
        return dense_kept(place)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Values zero, at places by chance (or as they were saved)."""
        n = int(group["coefficients"])
        index = start.saved.get("index")
        if index is None:
            index = _order(group, place)[:n]
        return {"values": torch.zeros(n), "index": index.long()}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W plus the change."""
        values, index = float(group["scale"]) * tensors["values"], tensors["index"].long()
        change = wavelet_change(values.unsqueeze(0), index.unsqueeze(0), place)[0]
        return DenseMap(frozen.weight + change, frozen.bias)

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Of `WaveFTConfig`."""
        seed = group["places_seed"]
        return {"scaling": group["scale"], "wavelet_family": "db1", "random_loc_seed": seed}

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """Of `WaveFTConfig`: Haar's wavelets, and as many numbers at every map."""
        other = config["wavelet_family"] != "db1" or config["proportional_parameters"]
        if other or not (config["use_idwt"] and config["init_weights"]):
            return None
        return {
            "coefficients": int(str(config["n_frequency"])),
            "scale": float(str(config["scaling"])),
            "places_seed": int(str(config["random_loc_seed"])),
        }

    def peft_module_settings(
        self, modules: Mapping[str, tuple[Group, Place]]
    ) -> Mapping[str, object]:
        """Every map's own number of coefficients."""
        numbers = {name: int(group["coefficients"]) for name, (group, _) in modules.items()}
        most = max(numbers.values())
        fewer = {re.escape(name): n for name, n in numbers.items() if n != most}
        return {"n_frequency": most, "n_frequency_pattern": fewer}

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """The values, which lie where `peft` draws them."""
        index = tensors["index"].long()
        if not torch.equal(index.cpu(), _order(group, place)[: len(index)]):
            given = f"other places at layer {place.layer}, {place.site}, than places_seed gives"
            raise ExportError(Fault("export", "waveft.places_seed", given, "those that it gives"))
        return {"waveft_spectrum": tensors["values"]}

    def stack_key(self, group: Group) -> Hashable:
        """Numbers of one size class stack."""
        return size_class(int(group["coefficients"]))


registry.register(WaveFt())
