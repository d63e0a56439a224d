"""Adapters of `peft`'s own types in a pack of one: wired in while it runs.

While the pack is wired, the `forward` of every adapted module is that of `peft`'s layer around a
copy of it; the module stays where it is, and below the branch point the trunk runs it untouched.
What `peft`'s layers draw in training is seeded by step and module, so that a resumed or recomputed
pass draws the same; unlike lanes' draws, it depends on how a batch is cut into micro-batches.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.counting import placed_groups
from autopeft.methods import registry
from autopeft.methods.base import Call
from autopeft.methods.passed.adapter import PassedAdapter, passed_adapters
from autopeft.methods.passed.build import Target
from autopeft.training.lanes.optimizer import Stacked
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.stream import Stream


def is_passed(configuration: Configuration) -> bool:
    """Whether some of its groups are `peft`'s own types, so that it takes a pack by itself."""
    return any(registry[name].alone for name in configuration.methods)


def passed_lanes(
    configuration: Configuration,
    backbone: Backbone,
    seeds: Seeds,
    saved: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> "list[PassedLane]":
    """What `peft` trains of a lane; [] for nothing."""
    adapters = passed_adapters(
        placed_groups(configuration, backbone.anatomy),
        backbone,
        seed=lambda name: seeds.seed("init", name),
        saved=saved,
        dtype=dtype,
    )
    return [PassedLane(adapter) for adapter in adapters]


class PassedLane:
    """An adapter as (part of) the one lane of a pack.

    Args:
        adapter: What was built.
    """

    def __init__(self, adapter: PassedAdapter) -> None:
        self._adapter = adapter
        self._random = adapter.kind.random or any(
            name.endswith("dropout") and value for name, value in adapter.settings.items()
        )

    @property
    def model(self) -> nn.Module:
        """`peft`'s model."""
        model: nn.Module = self._adapter.built.model
        return model

    # -- tensors ------------------------------------------------------------------------------

    def stacked(self) -> list[Stacked]:
        """What trains, as `Pack.stacked` has it; without a lane axis."""
        return [
            Stacked(
                f"{self._adapter.name}/{name}",
                parameter,
                (0,),
                decays=parameter.dim() > 1,
                layer=self._adapter.place_of(name).layer,
            )
            for name, parameter in self._adapter.trained().items()
        ]

    def views(self, tensor_of: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors shaped like the stacked ones, by saved name."""
        return {
            self._adapter.saved_as(name): tensor_of[f"{self._adapter.name}/{name}"]
            for name in self._adapter.trained()
        }

    def fixed(self) -> dict[str, Tensor]:
        """What `peft` saves beside what it trains, by saved name."""
        return self._adapter.fixed()

    def auxiliary_loss(self) -> Tensor | None:
        """AdaLoRA's penalty on factors that are not orthogonal, as `peft` adds it to the loss."""
        if self._adapter.kind.name != "ADALORA":
            return None
        penalties = []
        for name, parameter in self._adapter.trained().items():
            if "lora_A" in name or "lora_B" in name:
                square = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                identity = torch.eye(len(square), dtype=square.dtype, device=square.device)
                penalties.append(torch.norm(square - identity, p="fro"))
        weight: float = self._adapter.built.config.orth_reg_weight
        return weight * torch.stack(penalties).mean()

    # -- running ------------------------------------------------------------------------------

    def install(self, stream: Stream, shared: frozenset[str]) -> "list[Patch]":
        """Put `peft`'s layers in place; the patches remove them.

        Args:
            stream: Tells whether the lane runs, or the trunk.
            shared: Modules at which operators take over the output's memory after it.
        """
        return [
            Patch(module, self._forward(target, module, stream, again=target.name in shared))
            for target, module in self._adapter.modules.items()
        ]

    def _forward(
        self, target: Target, module: nn.Module, stream: Stream, *, again: bool
    ) -> Callable[..., Tensor]:
        own, layer = module.forward, self._adapter.built.layer(target)
        of_tasks = self._adapter.kind.name == "POLY"

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not stream.lanes:
                return own(x, *args, **kwargs)  # type: ignore[no-any-return]
            call = stream.running_call()
            if layer.training != call.training:
                layer.train(call.training)
            if of_tasks:
                kwargs["task_ids"] = torch.zeros(len(x), dtype=torch.long, device=x.device)
            with self._drawing(call, target, x.device):
                y: Tensor = layer(x, *args, **kwargs)
            if call.gains is not None:
                frozen = own(x, *args)
                gain = call.gains[0, self._adapter.places[target].layer].to(y.dtype)
                y = frozen + gain * (y - frozen)
            return y.clone() if again else y

        return forward

    @contextmanager
    def _drawing(self, call: Call, target: Target, device: torch.device) -> Iterator[None]:
        """Seed torch's own generator inside, where something is drawn from it."""
        if not (call.training and self._random):
            yield
            return
        drawn = call.uniform(f"{self._adapter.method}.{target.name}", (1,), per_row=False)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(drawn.double().item() * 2**53))
            yield


class Patch:
    """Another forward of a module, until it is removed.

    Args:
        module: Gets it.
        forward: Takes the place of its own.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self._module, self._before = module, module.__dict__.get("forward")
        module.forward = forward

    def remove(self) -> None:
        """Give the module its own forward back."""
        if self._before is None:
            del self._module.forward
        else:
            self._module.forward = self._before
