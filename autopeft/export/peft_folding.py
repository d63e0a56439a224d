"""Trained methods whose change of a map is a product of two factors, as plain LoRA.

VeRA, MELoRA, Comp-LoRA, LoRETTA's factors and VB-LoRA train LoRA's A and B in other ways. Once
trained, A and B are all there is of them, and HF `peft` holds those exactly.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.counting import placed_groups
from autopeft.methods import registry
from autopeft.methods.base import DenseMap, Place
from autopeft.methods.lora import scaling

LORA = "lora"


def folds(method: str) -> bool:
    """Whether a method is LoRA once it is trained, and not before."""
    held = registry[method]
    return held.peft_type == "LORA" and method != LORA and not held.alone


def as_lora(
    configuration: Configuration, backbone: Backbone, weights: Mapping[str, Tensor]
) -> tuple[Configuration, dict[str, Tensor]]:
    """The same update as groups of `lora` alone, and its tensors by their saved names.

    Scales are in the factors, so that alpha equals the rank; of several methods at one place, the
    factors lie side by side.

    Args:
        configuration: Of methods that are LoRA, or fold into it.
        backbone: What it was trained on.
        weights: The lane's unpadded tensors by saved name, fixed ones too.
    """
    factors: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for group, place in placed_groups(configuration, backbone.anatomy):
        factors[place.layer, place.site].append(_factors(group, place, backbone, weights))
    tensors = {name: t for name, t in weights.items() if name.startswith("head.")}
    groups = []
    for (layer, site), parts in factors.items():
        low, high = torch.cat([a for a, _ in parts], 1), torch.cat([b for _, b in parts])
        rank = low.shape[1]
        tensors |= {f"lora.{layer}.{site}.A": low, f"lora.{layer}.{site}.B": high}
        groups.append(Group.of(LORA, [layer], [site], rank=rank, alpha=float(rank), dropout=0.0))
    return Configuration.of(groups, training=dict(configuration.training)), tensors


def _factors(
    group: Group, place: Place, backbone: Backbone, weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """A [d_in, r] and B [r, d_out] with all scales, float32."""
    method, start = registry[group.method], f"{group.method}.{place.layer}.{place.site}."
    own = {n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}
    for tensor, (layer, site) in method.owners(group, place).items():
        own[tensor] = weights[f"{group.method}.{layer}.{site}.{tensor}"]
    if group.method == LORA:
        return own["A"], scaling(group) * own["B"]
    weight = backbone.weight(place.layer, place.site).to(next(iter(own.values())).device)
    a, b = method.lora_factors(group, place, own, DenseMap(weight))
    return a.float(), b.float()
