"""A lane's state between rungs: unpadded weights, AdamW moments, counts, in one safetensors file.

It holds nothing of the pack the lane was in, so lanes can be regrouped. A sparsity rule that acts
while training keeps what it has learnt here too.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autopeft.errors import InputError
from autopeft.study.disk import sync
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Pack
from autopeft.training.lanes.rules import LaneRules

KINDS = ("weight", "first", "second", "fixed", "rule")


@dataclass(frozen=True)
class LaneState:
    """One lane, unpadded, on the CPU.

    Attributes:
        tensors: By `kind/name`, kind one of `KINDS`; a rule's tensors are its own.
        step: The study's optimizer step that the lane has reached.
        updates: Updates that the lane's head has taken (fewer where it was inactive).
        active: False once it has diverged.
        configuration_hash: Of what it trains.
    """

    tensors: dict[str, Tensor]
    step: int
    updates: int
    active: bool
    configuration_hash: str

    def weights(self) -> dict[str, Tensor]:
        """Trained tensors by saved name."""
        return {
            name.removeprefix("weight/"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("weight/")
        }

    def of_rule(self) -> dict[str, Tensor]:
        """What its sparsity rule keeps."""
        return {
            name.removeprefix("rule/"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("rule/")
        }

    def kept(self) -> dict[str, Tensor]:
        """Trained and fixed tensors by saved name: all that it takes to run the lane."""
        fixed = {
            name.removeprefix("fixed/"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("fixed/")
        }
        return self.weights() | fixed

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one, never half of it.

        Raises:
            OSError: The disk is full or fails; safetensors tells of it in an error of its own.
        """
        meta = {
            "step": self.step,
            "updates": self.updates,
            "active": self.active,
            "hash": self.configuration_hash,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(self.tensors, partial, metadata={"autopeft": json.dumps(meta)})
        sync(partial)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "LaneState":
        """Read a file written by `save`; InputError where it is none."""
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["autopeft"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError) as error:
            raise InputError(f"{path}: not a lane state ({error})") from error
        return cls(tensors, meta["step"], meta["updates"], meta["active"], meta["hash"])


def take_state(
    pack: Pack, optimizer: LaneAdamW, step: int, rules: LaneRules | None = None
) -> dict[int, LaneState]:
    """The state of every lane of a pack, by trial number; with that of its rules."""
    buffers = _buffers(pack, optimizer)
    states = {}
    for position, lane in enumerate(pack.lanes):
        tensors = {
            f"{kind}/{name}": view.detach().cpu().clone().contiguous()
            for kind, tensor_of in buffers.items()
            for name, view in pack.lane_views(tensor_of, position).items()
        }
        if rules is not None:
            own = rules.state(position)
            tensors |= {f"rule/{name}": tensor for name, tensor in own.items()}
        for name, view in pack.lane_fixed(position).items():
            tensors[f"fixed/{name}"] = view.detach().cpu().clone().contiguous()
        states[lane.number] = LaneState(
            tensors,
            step,
            int(optimizer.steps_of(position)[-1]),
            bool(optimizer.active[position]),
            lane.configuration.hash,
        )
    return states


@torch.no_grad()
def put_state(
    pack: Pack,
    optimizer: LaneAdamW,
    states: dict[int, LaneState],
    rules: LaneRules | None = None,
) -> None:
    """Continue a pack's lanes from their states, whatever packs they were in before.

    Raises:
        InputError: A state is of another configuration, or other weights were chosen for it than
            the pack has (see `saved` of `Pack`).
    """
    buffers = _buffers(pack, optimizer)
    for position, lane in enumerate(pack.lanes):
        state = states[lane.number]
        if state.configuration_hash != lane.configuration.hash:
            raise InputError(f"trial {lane.number}: its saved state is of another configuration")
        for name, view in pack.lane_fixed(position).items():
            if not torch.equal(state.tensors[f"fixed/{name}"].to(view), view):
                raise InputError(f"trial {lane.number}: its saved state has another {name}")
        for kind, tensor_of in buffers.items():
            for name, view in pack.lane_views(tensor_of, position).items():
                view.copy_(state.tensors[f"{kind}/{name}"])
        optimizer.steps_of(position).fill_(state.updates)
        optimizer.active[position] = state.active
        if rules is not None:
            rules.restore(position, state.of_rule())


def _buffers(pack: Pack, optimizer: LaneAdamW) -> dict[str, dict[str, Tensor]]:
    names = [item.name for item in pack.stacked()]
    return {
        "weight": pack.parameters_by_name(),
        "first": {name: optimizer.view(optimizer.first_moment, name) for name in names},
        "second": {name: optimizer.view(optimizer.second_moment, name) for name in names},
    }
