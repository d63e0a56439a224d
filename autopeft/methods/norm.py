"""Norm tuning: scale and shift of a layer's norms are trained (Qi et al. 2022, LN-tuning).

n(x) (w + dw) + b + db, n(x) what the norm makes of x before its own scale w. Changes start at
zero; a norm without a shift (RMSNorm) gets one, unless `bias` is false. HF `peft`'s LN_TUNING
trains what a norm has, and so it holds no shift that a norm gets.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import NORMS, Anatomy
from autopeft.configuration import Group
from autopeft.methods.base import DenseMap, Kept, Start, registry
from autopeft.methods.inherited import Unfolded
from autopeft.methods.lane_operator import Call, LaneOperator, Place
from autopeft.space.schema import MethodSchema, ParameterSchema, Scalar


class NormOperator(LaneOperator):
    """Stacked changes of a scale [k, d] and, for all or none, of a shift [k, d]."""

    hook = "norm"
    scale: Tensor

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """n(x) dw + db."""
        made = self.norm.normalised(x) * self.scale[:, None, None]
        if "shift" not in self.stacked_names:
            return made
        return made + self.get_parameter("shift")[:, None, None]


class NormTuning(Unfolded):
    """The method `norm`."""

    operator_type = NormOperator
    schema = MethodSchema(
        name="norm",
        size="",
        parameters=(ParameterSchema("bias", "bool", default=True),),
        sites=NORMS,
        default_sites=("attention_norm", "ffn_norm"),
    )
    source = "Qi et al. 2022, Parameter-Efficient Tuning on Layer Normalization, arXiv 2211.08682"
    identity = "exact"
    peft_type = "LN_TUNING"

    def carried_by(self, anatomy: Anatomy) -> str:
        """It needs norms that are known, in every layer."""
        return "" if anatomy.norms else "its norms were not recognised in every layer"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and norm."""
        width = anatomy.hidden_size
        return [Place(layer, role, width, width) for layer in group.layers for role in group.sites]

    def count(self, group: Group, place: Place) -> int:
        """d, or 2 d with a shift."""
        return place.d_out * (2 if group["bias"] else 1)

    training_count = count

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """n(x), in float32 under autocast too, scaled before it is shifted; the norm keeps x."""
        return Kept(exact=place.d_in, reads=False, running=self.count(group, place) - place.d_out)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Zeros."""
        names = ("scale", "shift") if group["bias"] else ("scale",)
        return {name: torch.zeros(place.d_out) for name in names}

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap:
        """w + dw and b + db."""
        bias = frozen.bias
        if group["bias"]:
            bias = tensors["shift"] if bias is None else bias + tensors["shift"]
        return DenseMap(frozen.weight + tensors["scale"], bias)

    def peft_lacks(self, group: Group, anatomy: Anatomy) -> str:
        """A shift where there is none."""
        norms = (
            anatomy.layers[layer].norms[role] for layer in group.layers for role in group.sites
        )
        bare = [norm.module for norm in norms if not norm.bias]
        return f"a shift of {bare[0]}, which has none" if group["bias"] and bare else ""

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """`LNTuningConfig` has nothing to set, and trains shifts where there are some."""
        return {"bias": True}

    def peft_trains(self, group: Group) -> str:
        """The shift, always."""
        return "" if group["bias"] else "with the norms' shifts, where they have some"

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """A whole norm, as it becomes."""
        norm = self.merged(group, place, tensors, frozen)
        held = {"ln_tuning_layers.weight": norm.weight}
        return held if norm.bias is None else held | {"ln_tuning_layers.bias": norm.bias}

    def stack_key(self, group: Group) -> Hashable:
        """All with a shift stack, and all without."""
        return bool(group["bias"])


registry.register(NormTuning())
