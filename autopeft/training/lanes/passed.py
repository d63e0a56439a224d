"""Adapters of `peft`'s own types in a pack of one: wired in while it runs.

While the pack is wired, the `forward` of every adapted module is that of `peft`'s layer around a
copy of it; the module stays where it is, and below the branch point the trunk runs it untouched.
What stands before every text is put into the model's arguments, as `peft` does it.

What `peft`'s modules draw in training is seeded by step and module, so that a resumed or
recomputed pass draws the same; unlike lanes' draws, it depends on how a batch is cut into
micro-batches.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.embeddings import cache_argument
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.counting import placed_groups
from autopeft.errors import BackboneError, Fault
from autopeft.methods import registry
from autopeft.methods.lane_operator import Call
from autopeft.methods.passed.adapter import (
    AnyAdapter,
    ExpertsAdapter,
    PassedAdapter,
    TokensAdapter,
    passed_adapters,
)
from autopeft.methods.passed.build import ROOT, Target
from autopeft.methods.passed.types import NAME
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
    lanes: list[PassedLane] = []
    for adapter in adapters:
        if isinstance(adapter, ExpertsAdapter):
            lanes.append(ExpertsLane(adapter, backbone))
        elif isinstance(adapter, TokensAdapter):
            lanes.append(TokensLane(adapter, backbone))
        elif adapter.kind.where == "layers":
            lanes.append(LayersLane(adapter, backbone))
        else:
            wraps = adapter.kind.where == "attention"
            lanes.append(AttentionLane(adapter) if wraps else ModuleLane(adapter))
    return lanes


class PassedLane:
    """An adapter as (part of) the one lane of a pack.

    Args:
        adapter: What was built.

    Attributes:
        tokens: By how many tokens rows are longer than their texts.
        reads_inputs: Whether it reads the base model's arguments, or makes them.
    """

    tokens = 0
    reads_inputs = False

    def __init__(self, adapter: AnyAdapter) -> None:
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
        """What its type adds to the loss by its tensors alone."""
        return None

    # -- running ------------------------------------------------------------------------------

    def install(self, stream: Stream, shared: frozenset[str]) -> "list[Patch]":
        """Put `peft`'s layers in place; the patches remove them.

        Args:
            stream: Tells whether the lane runs, or the trunk.
            shared: Modules at which operators take over the output's memory after it.
        """
        return []

    def given(self, inputs: Mapping[str, Tensor], call: Call) -> dict[str, Any]:
        """The base model's arguments in a pass of the lane.

        Args:
            inputs: Those of the texts, each [B, T].
            call: The pass.
        """
        return dict(inputs)

    @contextmanager
    def _drawing(self, call: Call, name: str, device: torch.device) -> Iterator[None]:
        """Seed torch's own generator inside, where something is drawn from it."""
        if not (call.training and self._random):
            yield
            return
        # A GPU's generator keeps its state on the host: nothing here waits for the device.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(call.uniform.seed(f"{self._adapter.method}.{name}"))
            yield


class ModuleLane(PassedLane):
    """An adapter of modules.

    Args:
        adapter: What was built.
    """

    _adapter: PassedAdapter

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

    def install(self, stream: Stream, shared: frozenset[str]) -> "list[Patch]":
        """A layer around each module's copy."""
        return [
            Patch(module, self._forward(target, module, stream, again=target.name in shared))
            for target, module in self._adapter.modules.items()
        ]

    def _forward(
        self, target: Target, module: nn.Module, stream: Stream, *, again: bool
    ) -> Callable[..., Tensor]:
        own, layer = module.forward, self._adapter.built.layer(target)
        of_tasks = self._adapter.kind.name == "POLY"
        below = self._adapter.kind.where == "embeddings"

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not (stream.below if below else stream.lanes):
                return own(x, *args, **kwargs)  # type: ignore[no-any-return]
            call = stream.running_call()
            if layer.training != call.training:
                layer.train(call.training)
            if of_tasks:
                kwargs["task_ids"] = torch.zeros(len(x), dtype=torch.long, device=x.device)
            with self._drawing(call, target.name, x.device):
                y: Tensor = layer(x, *args, **kwargs)
            if call.gains is not None:
                frozen = own(x, *args)
                gain = call.gains[0, self._adapter.places[target].layer].to(y.dtype)
                y = frozen + gain * (y - frozen)
            return y.clone() if again else y

        return forward


class AttentionLane(PassedLane):
    """Wrappers of attention modules.

    Args:
        adapter: What was built.
    """

    _adapter: PassedAdapter

    def install(self, stream: Stream, shared: frozenset[str]) -> "list[Patch]":
        """A wrapper around each module's own forward."""
        return [
            Patch(module, self._forward(target, module, stream))
            for target, module in self._adapter.modules.items()
        ]

    def _forward(self, target: Target, module: nn.Module, stream: Stream) -> Callable[..., Any]:
        own, wrapper = module.forward, self._adapter.built.layer(target)
        weight = next(module.parameters())
        narrow = weight.dtype if weight.dtype in (torch.bfloat16, torch.float16) else None

        def uncast(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(weight.device.type, enabled=False):
                return own(*args, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not stream.lanes:
                return own(*args, **kwargs)
            call = stream.running_call()
            # Prompts and gates are wider than the maps of a backbone that is held in fewer bits.
            casting = torch.autocast(weight.device.type, narrow) if narrow else nullcontext()
            with casting:
                y, *others = wrapper(*args, **kwargs)
            if call.gains is not None:
                without = own(*args, **kwargs)[0]
                gain = call.gains[0, self._adapter.places[target].layer].to(y.dtype)
                y = without + gain * (y - without)
            return (y, *others)

        wrapper.get_submodule("model").forward = uncast if narrow else own
        return forward


class LayersLane(PassedLane):
    """A network beside the model, whose state runs along through the layers.

    `peft` hands the state on within what layers take and give; here it lies beside them.

    Args:
        adapter: What was built.
        backbone: What it runs beside.
    """

    reads_inputs = True
    _adapter: PassedAdapter

    def __init__(self, adapter: PassedAdapter, backbone: Backbone) -> None:
        super().__init__(adapter)
        self._table: Any = backbone.model.get_input_embeddings()  # type: ignore[operator]
        self._tuner: Any = adapter.built.model.base_model
        self._network: nn.Module = self._tuner.shadow_backbone[NAME]
        self._states: dict[int, Tensor] = {}

    def given(self, inputs: Mapping[str, Tensor], call: Call) -> dict[str, Any]:
        """The same, which the network reads first."""
        ids = inputs["input_ids"]
        if self._network.training != call.training:
            self._network.train(call.training)
        shared = None
        if self._tuner._shadow_share_embeddings[NAME]:
            shared = self._table(ids).to(next(self._network.parameters()).dtype)
        with self._drawing(call, "network", ids.device):
            state, _ = self._tuner._compute_initial_shadow_state(
                NAME, ids, inputs["attention_mask"], None, shared
            )
        self._states = {0: state}
        return dict(inputs)

    def install(self, stream: Stream, shared: frozenset[str]) -> "list[Patch]":
        """A wrapper around each layer's own forward."""
        return [
            Patch(module, self._forward(index, target, module, stream))
            for index, (target, module) in enumerate(self._adapter.modules.items())
        ]

    def _forward(
        self, index: int, target: Target, module: nn.Module, stream: Stream
    ) -> Callable[..., Any]:
        own, layer = module.forward, self._adapter.built.layer(target)
        last = index == len(self._adapter.modules) - 1
        shadow: Any = layer
        dropout = shadow.shadow_dropout[NAME]

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not stream.lanes:
                return own(hidden, *args, **kwargs)
            call, state = stream.running_call(), self._states[index]
            if dropout.training != call.training:
                dropout.train(call.training)
            with self._drawing(call, target.name, hidden.device):
                read = shadow.shadow_inject(hidden, state, NAME)
            if call.gains is not None:
                gain = call.gains[0, self._adapter.places[target].layer].to(hidden.dtype)
                read = hidden + gain * (read - hidden)
            given = own(read, *args, **kwargs)
            if not last:  # a layer that runs again for its gradient gives the same state again
                put = shadow._block_output_hidden_states(given)
                self._states[index + 1] = shadow.shadow_update(put, state, NAME)
            return given

        return forward


class ExpertsLane(PassedLane):
    """Adapters, each scaled token by token by a router that has read the text before.

    Args:
        adapter: What was built.
        backbone: What it runs in.
    """

    reads_inputs = True
    _adapter: ExpertsAdapter

    def __init__(self, adapter: ExpertsAdapter, backbone: Backbone) -> None:
        super().__init__(adapter)
        layers = adapter.built.maps()
        self._maps = {name: (backbone.model.get_submodule(name), layers[name]) for name in layers}
        self._scales: Tensor | None = None

    def given(self, inputs: Mapping[str, Tensor], call: Call) -> dict[str, Any]:
        """The same, which the router has read."""
        built = self._adapter.built
        for module in (built.router, *(layer for _, layer in self._maps.values())):
            module.train(call.training)
        with self._drawing(call, "router", inputs["input_ids"].device):
            self._scales = built.scales(inputs)
        return dict(inputs)

    def install(self, stream: Stream, shared: frozenset[str]) -> "list[Patch]":
        """A layer around each adapted map's copy."""
        return [
            Patch(module, self._forward(name, module, layer, stream))
            for name, (module, layer) in self._maps.items()
        ]

    def _forward(
        self, name: str, module: nn.Module, layer: nn.Module, stream: Stream
    ) -> Callable[..., Tensor]:
        own, index = module.forward, self._adapter.place_of(f"{ROOT}{name}.").layer

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not stream.lanes:
                return own(x, *args, **kwargs)  # type: ignore[no-any-return]
            call = stream.running_call()
            with self._drawing(call, name, x.device):
                y: Tensor = layer(x, *args, scalings=self._scales, **kwargs)
            if call.gains is not None:
                frozen = own(x, *args, **kwargs)
                y = frozen + call.gains[0, index].to(y.dtype) * (y - frozen)
            return y

        return forward


class TokensLane(PassedLane):
    """What stands before every text.

    Args:
        adapter: What was built.
        backbone: What reads it.
    """

    reads_inputs = True
    _adapter: TokensAdapter

    def __init__(self, adapter: TokensAdapter, backbone: Backbone) -> None:
        super().__init__(adapter)
        self._table: Any = backbone.model.get_input_embeddings()  # type: ignore[operator]
        self._cache = cache_argument(backbone.model)
        self._is_cache = adapter.kind.where == "prefix"
        self.tokens = 0 if self._is_cache else adapter.length
        embeddings = backbone.anatomy.embeddings
        self._positions = None if embeddings is None else embeddings.positions

    def given(self, inputs: Mapping[str, Tensor], call: Call) -> dict[str, Any]:
        """Tokens among the embeddings of the texts, or a cache beside their tokens.

        As `peft` does it: positions count from the first of them, tokens are of type 0, and
        beside a cache types are left out.
        """
        ids = inputs["input_ids"]
        self._check_length(ids.shape[1])
        encoder = self._adapter.built.encoder
        if encoder.training != call.training:
            encoder.train(call.training)
        with self._drawing(call, "encoder", ids.device):
            made = self._adapter.built.made(len(ids))
        mask = longer(inputs["attention_mask"], self._adapter.length)
        if self._is_cache:
            return {"input_ids": ids, "attention_mask": mask, self._cache: standing(made)}
        texts = self._table(ids)
        given = {"inputs_embeds": torch.cat([made.to(texts.dtype), texts], dim=1)}
        types = inputs.get("token_type_ids")
        if types is not None:
            given["token_type_ids"] = longer(types, self.tokens, value=0)
        return given | {"attention_mask": mask}

    def _check_length(self, tokens: int) -> None:
        whole = tokens + self._adapter.length
        if self._positions is not None and whole > self._positions:
            given = f"{self._adapter.length} before a text of {tokens} tokens"
            allowed = f"{self._positions} together, since peft moves the text behind them"
            key, hint = f"{self._adapter.method}.num_virtual_tokens", "lower data.max_length"
            raise BackboneError(Fault("configuration", key, given, allowed, hint))


def longer(mask: Tensor, tokens: int, *, value: int = 1) -> Tensor:
    """[B, T] with so many columns of a value before it."""
    return nn.functional.pad(mask, (tokens, 0), value=value)


def standing(cache: Any) -> Any:
    """A cache that layers read without adding to it, so that a layer may run again.

    A checkpointed layer does, and so does the last one where only its first token is read.
    """

    def update(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        return copy.copy(cache.layers[layer]).update(keys, values, *args, **kwargs)

    cache.update = update
    return cache


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
