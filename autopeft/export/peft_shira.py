"""Trained sparse weights as HF `peft`'s SHiRA, which holds any set of single weights.

All of its layers hold r (d_in + d_out) weights, with one r for the whole adapter (peft 0.21). What
was trained are fewer, and not as many everywhere: zeros at weights that were not trained fill the
rest. So outputs are exact, and the adapter is larger than ours.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopeft.backbone.heads import HeadRecipe
from autopeft.backbone.loading import Backbone
from autopeft.backbone.structure import widths
from autopeft.configuration import Configuration
from autopeft.counting import placed_groups
from autopeft.errors import ExportError, Fault
from autopeft.export.peft_options import plain_config, shared_options
from autopeft.methods.sparse import dense_change


@dataclass(frozen=True)
class _Module:
    """What is trained of one module's weight.

    Attributes:
        d_in: Its input width.
        d_out: Its output width.
        positions: int64 [n], flat positions in the weight [d_out, d_in], ascending.
        values: [n].
    """

    d_in: int
    d_out: int
    positions: Tensor
    values: Tensor

    @property
    def rank(self) -> int:
        """The smallest r that holds them."""
        return -(-len(self.positions) // (self.d_in + self.d_out))

    def has(self, rank: int) -> bool:
        """Whether it has as many weights as this r takes."""
        return rank * (self.d_in + self.d_out) <= self.d_in * self.d_out

    def filled(self, rank: int) -> tuple[Tensor, Tensor]:
        """Indices int32 [2, m] and values [m], m = r (d_in + d_out), zeros at the end."""
        free = torch.ones(self.d_in * self.d_out, dtype=torch.bool)
        free[self.positions] = False
        missing = rank * (self.d_in + self.d_out) - len(self.positions)
        positions = torch.cat([self.positions, free.nonzero().ravel()[:missing]])
        values = torch.cat([self.values, self.values.new_zeros(missing)])
        return torch.stack([positions // self.d_in, positions % self.d_in]).int(), values


def shira(
    configuration: Configuration,
    backbone: Backbone,
    head: HeadRecipe,
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`adapter_config.json`'s content, and tensors by their name within the base model.

    Args:
        configuration: Sparse weights alone, on `nn.Linear` maps.
        backbone: What it was trained on.
        head: The task head.
        weights: The lane's unpadded tensors by saved name, fixed ones too.

    Raises:
        ExportError: So many weights were trained that r takes more than some map has.
    """
    modules = _modules(configuration, backbone, weights)
    rank = max(module.rank for module in modules.values())
    faults = [
        Fault(
            "export",
            "sparse.density",
            f"r = {rank} in SHiRA, {rank * (module.d_in + module.d_out):,} weights of {name}",
            f"at most {module.d_in * module.d_out:,}, which it has",
            "use --format yaml, or a lower density",
        )
        for name, module in modules.items()
        if not module.has(rank)
    ]
    if faults:
        raise ExportError(faults)
    tensors = {}
    for name, module in modules.items():
        indices, values = module.filled(rank)
        tensors[f"{name}.shira_indices"] = indices
        tensors[f"{name}.shira_weight"] = values
    return _config(sorted(modules), rank, head, backbone.name), tensors


def _config(names: list[str], rank: int, head: HeadRecipe, base_model: str) -> dict[str, Any]:
    from peft import ShiraConfig

    options = shared_options(head, base_model)
    return plain_config(ShiraConfig(r=rank, random_seed=0, target_modules=names, **options))


def _modules(
    configuration: Configuration, backbone: Backbone, weights: Mapping[str, Tensor]
) -> dict[str, _Module]:
    """The trained weights of every module; the sites of a fused map come together."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for group, place in placed_groups(configuration, backbone.anatomy):
        site = backbone.anatomy.site(place.layer, place.site)
        start = f"sparse.{place.layer}.{place.site}."
        own = {name: weights[start + name].cpu() for name in ("values", "index")}
        trained = {**own, "values": torch.ones_like(own["values"])}
        at_in, at_out = dense_change(group, place, trained).nonzero(as_tuple=True)
        positions = (at_out + site.start) * place.d_in + at_in
        parts[site.module].append((positions, dense_change(group, place, own)[at_in, at_out]))
    modules = {}
    for name, found in parts.items():
        linear: Any = backbone.model.get_submodule(name)
        positions = torch.cat([positions for positions, _ in found])
        order = torch.argsort(positions)
        values = torch.cat([values for _, values in found])
        modules[name] = _Module(*widths(linear), positions[order], values[order])
    return modules
