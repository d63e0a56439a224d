"""Adapters of `peft`'s own types in a pack of one: built, wired in while it runs, named, saved.

While the pack is wired, the `forward` of every adapted module is that of `peft`'s layer around a
copy of it; the module stays where it is, and below the branch point the trunk runs it untouched.
What `peft`'s layers draw in training is seeded by step and module, so that a resumed or recomputed
pass draws the same; unlike lanes' draws, it depends on how a batch is cut into micro-batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.counting import placed_groups
from autopeft.errors import BackboneError, Fault
from autopeft.methods import registry
from autopeft.methods.base import Call, Place
from autopeft.methods.passed.build import ROOT, BuiltAdapter, Target, build
from autopeft.methods.passed.counts import PassedPlace
from autopeft.methods.passed.method import Passed
from autopeft.training.lanes.optimizer import Stacked
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.stream import Stream


def is_passed(configuration: Configuration) -> bool:
    """Whether some of its groups are `peft`'s own types, so that it takes a pack by itself."""
    return any(registry[name].alone for name in configuration.methods)


class PassedGroup:
    """The adapter of one group.

    Args:
        group: What trains.
        places: Where, one per module.
        backbone: What it sits on; nothing of it is written.
        seeds: Source of what `peft` draws.
        saved: Tensors by saved name, perhaps among others, that it starts from.
        dtype: Of the trained tensors.

    Raises:
        BackboneError: `peft` cannot build it there.
    """

    def __init__(
        self,
        group: Group,
        places: Sequence[PassedPlace],
        backbone: Backbone,
        seeds: Seeds,
        saved: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        method = registry[group.method]
        if not isinstance(method, Passed):
            raise TypeError(f"{group.method} is no type of peft")
        self.group, self.kind = group, method.kind
        self._places: dict[Target, Place] = {p.modules[p.index].target: p for p in places}
        self._modules = {t: backbone.model.get_submodule(t.name) for t in self._places}
        for target, module in self._modules.items():
            if not module.weight.is_floating_point():  # type: ignore[operator,union-attr]
                given = f"{target.name}, which is quantised"
                raise BackboneError(
                    Fault("configuration", group.method, given, "model.quantization: none")
                )
        first = places[0]
        self.name = f"{group.method}.{first.layer}.{first.site}"
        seed = seeds.seed("init", self.name)
        self.built = build(self.kind, dict(group.settings), self._modules, seed=seed)
        for parameter in self.built.trained().values():
            parameter.data = parameter.data.to(dtype)
        held = {self._peft_name(n): t for n, t in saved.items() if n.startswith(self._start)}
        if held:
            self.built.load(held)
        self._keys = self._saved_names()
        self._random = self.kind.random or any(
            name.endswith("dropout") and value for name, value in group.settings
        )

    @property
    def _start(self) -> str:
        return f"{self.group.method}."

    # -- names --------------------------------------------------------------------------------

    def _saved_names(self) -> dict[str, str]:
        """Full names of trained tensors -> their names in what `peft` saves."""
        by_place = {_memory(tensor): name for name, tensor in reversed(self.built.saved().items())}
        names = {}
        for name, parameter in self.built.trained().items():
            if _memory(parameter) not in by_place:
                raise RuntimeError(f"peft does not save {name} of {self.group.method}")
            names[name] = by_place[_memory(parameter)]
        return names

    def _own_name(self, peft_name: str) -> str:
        """A tensor's saved name: `method.layer.site.tensor`, the place being its first owner's."""
        target = self.built.owner(peft_name)
        place = self._places[target]
        rest = peft_name.removeprefix(f"{ROOT}{target.name}.")
        return f"{self.group.method}.{place.layer}.{place.site}.{rest}"

    def _peft_name(self, own_name: str) -> str:
        """The inverse."""
        layer, site, rest = own_name.removeprefix(self._start).split(".", 2)
        if rest.startswith("base_model."):
            return rest
        (target,) = (t for t, p in self._places.items() if (str(p.layer), p.site) == (layer, site))
        return f"{ROOT}{target.name}.{rest}"

    # -- tensors ------------------------------------------------------------------------------

    def stacked(self) -> list[Stacked]:
        """What trains, as `Pack.stacked` has it; without a lane axis."""
        return [
            Stacked(
                f"{self.name}/{name}",
                parameter,
                (0,),
                decays=parameter.dim() > 1,
                layer=self._places[self.built.owner(name)].layer,
            )
            for name, parameter in self.built.trained().items()
        ]

    def views(self, tensor_of: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors shaped like the stacked ones, by saved name."""
        return {
            self._own_name(saved): tensor_of[f"{self.name}/{name}"]
            for name, saved in self._keys.items()
        }

    def fixed(self) -> dict[str, Tensor]:
        """What `peft` saves beside what it trains, by saved name."""
        trained = {_memory(parameter) for parameter in self.built.trained().values()}
        return {
            self._own_name(name): tensor
            for name, tensor in self.built.saved().items()
            if _memory(tensor) not in trained
        }

    def auxiliary_loss(self) -> Tensor | None:
        """AdaLoRA's penalty on factors that are not orthogonal, as `peft` adds it to the loss."""
        if self.kind.name != "ADALORA":
            return None
        penalties = []
        for name, parameter in self.built.trained().items():
            if "lora_A" in name or "lora_B" in name:
                square = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                identity = torch.eye(*square.size(), dtype=square.dtype, device=square.device)
                penalties.append(torch.norm(square - identity, p="fro"))
        weight = self.built.model.peft_config["default"].orth_reg_weight
        return weight * torch.stack(penalties).mean()

    # -- running ------------------------------------------------------------------------------

    def install(self, stream: Stream, shared: frozenset[str]) -> list["_Patch"]:
        """Put `peft`'s layers in place; the patches remove them.

        Args:
            stream: Tells whether the lane runs, or the trunk.
            shared: Modules at which operators take over the output's memory after it.
        """
        return [
            _Patch(module, self._forward(target, module, stream, again=target.name in shared))
            for target, module in self._modules.items()
        ]

    def _forward(
        self, target: Target, module: nn.Module, stream: Stream, *, again: bool
    ) -> Callable[..., Tensor]:
        own, layer = module.forward, self.built.layer(target)
        extra = {"poly": True} if self.kind.name == "POLY" else {}

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not stream.lanes:
                return own(x, *args, **kwargs)  # type: ignore[no-any-return]
            call = stream.running_call()
            if layer.training != call.training:
                layer.train(call.training)
            if extra:
                kwargs["task_ids"] = torch.zeros(len(x), dtype=torch.long, device=x.device)
            with self._drawing(call, target, x.device):
                y: Tensor = layer(x, *args, **kwargs)
            if call.gains is not None:
                frozen = own(x, *args)
                gain = call.gains[0, self._places[target].layer].to(y.dtype)
                y = frozen + gain * (y - frozen)
            return y.clone() if again else y

        return forward

    @contextmanager
    def _drawing(self, call: Call, target: Target, device: torch.device) -> Iterator[None]:
        """Seed torch's own generator inside, where something is drawn from it."""
        if not (call.training and self._random):
            yield
            return
        drawn = call.uniform(f"{self.group.method}.{target.name}", (1,), per_row=False)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(drawn.double().item() * 2**53))
            yield


class _Patch:
    """Another forward of a module, until it is removed."""

    def __init__(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self._module, self._before = module, module.__dict__.get("forward")
        module.forward = forward

    def remove(self) -> None:
        """Give the module its own forward back."""
        if self._before is None:
            del self._module.forward
        else:
            self._module.forward = self._before


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def passed_groups(
    configuration: Configuration,
    backbone: Backbone,
    seeds: Seeds,
    saved: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> list[PassedGroup]:
    """The adapters of all groups that are `peft`'s own types."""
    places: dict[Group, list[PassedPlace]] = {}
    for group, place in placed_groups(configuration, backbone.anatomy):
        if isinstance(place, PassedPlace):
            places.setdefault(group, []).append(place)
    return [
        PassedGroup(group, own, backbone, seeds, saved, dtype) for group, own in places.items()
    ]
