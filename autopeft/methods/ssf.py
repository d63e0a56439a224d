"""SSF: a linear map's outputs are scaled and shifted, channel by channel (arXiv 2210.08823).

(1 + g) y + b, with g and b zero at first; the paper starts its scales and shifts at random near 1
and 0. It puts them behind norms too, which the method `norm` trains. A key's outputs are left out:
without rotary positions a shift adds the same number to all of a query's scores.

HF `peft`'s GLORA, W (1 + A) + B and b (1 + D) + E with vectors, holds it where maps have a bias.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import Call, LaneOperator, Place
from autopeft.space.schema import MethodSchema, Scalar


class SsfOperator(LaneOperator):
    """Stacked `scale` and `shift` [k, d_out]; there is no padding."""

    scale: Tensor
    shift: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """g y + b; keeps a copy of y."""
        return y.clone() * self.scale[:, None, None] + self.shift[:, None, None]


class Ssf(OnLinearMaps):
    """The method `ssf`."""

    operator_type = SsfOperator
    schema = MethodSchema(
        name="ssf",
        size="",
        parameters=(),
        sites=tuple(role for role in LINEAR_ROLES if role != "key"),
        default_sites=("query", "value", "output", "up", "down"),
    )
    source = "Lian et al. 2022, Scaling & Shifting Your Features, arXiv 2210.08823"
    identity = "exact"
    peft_type = "GLORA"

    def count(self, group: Group, place: Place) -> int:
        """2 d_out."""
        return 2 * place.d_out

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """A copy of the output."""
        return Kept(exact=place.d_out, reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Zeros."""
        return {"scale": torch.zeros(place.d_out), "shift": torch.zeros(place.d_out)}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """W with its columns scaled; its bias scaled and shifted."""
        factors, shift = 1.0 + tensors["scale"], tensors["shift"]
        bias = shift if frozen.bias is None else frozen.bias * factors + shift
        return DenseMap(frozen.weight * factors, bias)

    def peft_lacks(self, group: Group, anatomy: Anatomy) -> str:
        """A shift where the map has no bias."""
        sites = (anatomy.site(layer, role) for layer in group.layers for role in group.sites)
        bare = [site.module for site in sites if not site.bias]
        return f"a shift of {bare[0]}, which has no bias" if bare else ""

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Of `GloraConfig`: vectors, and none for its product of W with another."""
        return {"config_A_B": "vector", "config_C": "none", "config_D_E": "vector"}

    def peft_trains(self, group: Group) -> str:
        """Its B, and scales of weights and biases apart."""
        return "with two more vectors, of GLoRA's"

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """One scale for weight and bias, no B and no C."""
        scale = tensors["scale"]
        column = scale.unsqueeze(1)
        return {
            "glora_A.X": column,
            "glora_B.X": torch.zeros_like(column),
            "glora_C.zeros": scale.new_zeros(place.d_in, 1),  # asked for where it has none
            "glora_D.X": scale.clone(),  # files hold no tensor twice
            "glora_E.X": tensors["shift"],
        }


registry.register(Ssf())
