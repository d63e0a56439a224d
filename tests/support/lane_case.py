"""A lane to hold against a reference: a solo pack in float64, and its tensors as leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform


@dataclass
class LaneCase:
    """A solo pack in float64 whose trained tensors were moved, with what it is compared by.

    Attributes:
        backbone: The backbone.
        group: What the lane trains.
        pack: Its pack.
        tensors: All its tensors by saved name, leaves that take gradients.
    """

    backbone: Backbone
    group: Group
    pack: Pack
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, backbone: Backbone, case: Configuration, *, moved: float = 0.1) -> Self:
        """Every trained tensor moved by N(0, moved) from where it starts."""
        lanes, seeds = [Lane(0, case)], Seeds(3)
        head = backbone.recipe(3)
        pack = Pack(backbone, head, lanes, seeds=seeds, dtype=torch.float64)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in pack.operators.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise, alpha=moved)
        views = pack.lane_views(pack.parameters_by_name(), 0)
        tensors = {name: view.clone().requires_grad_() for name, view in views.items()}
        return cls(backbone, case.groups[0], pack, tensors | pack.lane_fixed(0))

    def at(self, layer: int, site: str) -> dict[str, Tensor]:
        """The tensors of one place, with those that it shares."""
        name, method = self.group.method, registry[self.group.method]
        places = method.places(self.group, self.backbone.anatomy)
        place = next(each for each in places if (each.layer, each.site) == (layer, site))
        shared = {
            tensor: self.tensors[f"{name}.{at[0]}.{at[1]}.{tensor}"]
            for tensor, at in method.owners(self.group, place).items()
        }
        start = f"{name}.{layer}.{site}."
        own = {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}
        return own | shared

    def settings(self, site: str) -> dict[str, Any]:
        """What a reference is told of the lane at a site: its settings, and which site it is."""
        return dict(self.group.settings) | {"site": site}

    def logits(self, batch: Batch, *, training: bool = False) -> Tensor:
        """The lane's, or hidden states of a language model; in training with its row losses."""
        draws = StepUniform(Seeds(0), 0, 0, len(batch), torch.device("cpu"))
        share = torch.tensor(1.0 / len(batch), dtype=torch.float64) if training else None
        with self.pack.running():
            return self.pack(batch, Call(training, draws, row_share=share))[0]
