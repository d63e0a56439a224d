"""Trained methods whose change of a map is a product of two factors, as plain LoRA.

Some train LoRA's A and B in other ways, others change a few directions of a weight. Once trained,
A and B are all there is of them (`Method.lora_factors`), and HF `peft` holds those exactly.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.counting import placed_groups
from autopeft.errors import Fault
from autopeft.methods import registry
from autopeft.methods.base import DenseMap
from autopeft.methods.lane_operator import Place

LORA = "lora"
"""The method whose form all of them take."""


def folds(method: str) -> bool:
    """Whether a method is LoRA once it is trained, and not before."""
    held = registry[method]
    return held.peft_type == "LORA" and method != LORA and not held.alone


def folding_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """Places at which factors side by side would not be what was trained; [] where none is."""
    taken: set[tuple[int, str]] = set()
    faults = {}
    for group in configuration.groups:
        places = {
            (place.layer, place.site) for place in registry[group.method].places(group, anatomy)
        }
        if registry[group.method].reads_output and taken & places:
            layer, site = min(taken & places)
            given = f"behind another method at layer {layer}, {site}"
            hint = "use --format yaml"
            faults[group.method] = Fault("export", group.method, given, "the first there", hint)
        taken |= places
    return list(faults.values())


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
        low, high = _at_most_full(low, high)
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
    weight = backbone.weight(place.layer, place.site).to(next(iter(own.values())).device)
    svd = backbone.frozen_map(place.layer, place.site).svd_on_cpu
    a, b = method.lora_factors(group, place, own, DenseMap(weight, known_svd=svd))
    return a.float(), b.float()


def _at_most_full(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with no more columns than the map's own rank."""
    d_in, d_out = low.shape[0], high.shape[1]
    if low.shape[1] <= min(d_in, d_out):
        return low, high
    change = low @ high
    one = torch.eye(min(d_in, d_out), device=low.device)
    return (one, change) if d_in <= d_out else (change, one)
