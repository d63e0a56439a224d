"""Serving: a lane runs in a model that others call, as transformers' own forward runs it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.embeddings import cache_argument
from autopeft.errors import BackboneError, Fault
from autopeft.methods.lane_operator import Call
from autopeft.training.lanes.slots import Slots
from autopeft.training.lanes.stream import Stream

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with: by position, and by name."""


class Serving:
    """What tells the operators of a lane of each call, and makes its rows as they know them.

    A call without a mask gets one of all tokens, of which images have as many as their first
    layer reads. Where the lane has prompts, rows have slots for them from the first layer to the
    last; what reads hidden states between those reads the slots behind the text too.

    Args:
        stream: Told of every call.
        slots: Of the lane's rows.
        acts: Whether the lane acts in the call that begins.
        trains: Whether dropout is on in it.
    """

    def __init__(
        self, stream: Stream, slots: Slots, acts: Callable[[], bool], trains: Callable[[], bool]
    ) -> None:
        self._stream, self._slots, self._acts, self._trains = stream, slots, acts, trains
        self._tokens, self._cache = 0, ""

    def install(self, model: Any, anatomy: Anatomy) -> None:
        """Hook it in for good, around all hooks that the operators have.

        Args:
            model: The base model.
            anatomy: Its own.
        """
        self._cache = cache_argument(model)
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, always_call=True)
        layers = [model.get_submodule(layer.module) for layer in anatomy.layers]
        layers[0].register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        if self._slots.count:
            for layer in layers:
                layer.register_forward_pre_hook(self._turn, with_kwargs=True)
            layers[-1].register_forward_hook(self._leave)

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        acts = self._acts()
        if acts:
            _refuse_checkpoints(module)
        if acts and self._slots.count and self._cache:
            self._refuse_cache(kwargs)
            kwargs = kwargs | {"use_cache": False}
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        mask, stream = kwargs.get("attention_mask"), self._stream
        stream.rows, stream.lanes, stream.below = len(next(given)), int(acts), acts
        stream.call = Call(self._trains(), _Fresh(module.device), mask=mask)
        return args, kwargs

    def _refuse_cache(self, kwargs: dict[str, Any]) -> None:
        """Keys of slots would stand among those of the text that comes later."""
        if kwargs.get(self._cache) is not None:
            given, hint = "a cache, beside prompt tokens", "generate(..., use_cache=False)"
            raise BackboneError(Fault("peft", self._cache, given, "none", hint))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stream.call, self._stream.lanes, self._stream.below = None, 0, False
        self._stream.inputs.clear()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        named = "hidden_states" in kwargs
        hidden: Tensor = kwargs["hidden_states"] if named else args[0]
        call, self._tokens = self._stream.running_call(), hidden.shape[1]
        if call.mask is None:
            mask = hidden.new_ones(hidden.shape[:2], dtype=torch.long)
            self._stream.call = replace(call, mask=mask)
        if self._stream.lanes:
            hidden = self._slots.padded(hidden)
        if named:
            return args, kwargs | {"hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    def _turn(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        if not self._stream.lanes:
            return args, kwargs
        turned = self._slots.rotated(list(args), self._tokens)
        return tuple(turned), self._slots.rotated(kwargs, self._tokens)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self._stream.lanes:
            return output
        if isinstance(output, tuple):
            return output[0][:, : self._tokens], *output[1:]
        return output[:, : self._tokens]


def _refuse_checkpoints(model: nn.Module) -> None:
    """A layer that runs again in the backward pass would find the lane's call over.

    transformers' checkpoints then fail far from here, or, where they re-enter autograd and no
    input asks for a gradient, train nothing and say nothing.
    """
    if not (model.training and torch.is_grad_enabled()):
        return
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        hint = "train without: Trainer's gradient_checkpointing=False, or turn the model's off"
        raise BackboneError(Fault("peft", "gradient checkpointing", "on", "off", hint))


class _Fresh:
    """New draws at every call, of torch's own generators; see `Uniform`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """See `Uniform`."""
        return torch.rand(*shape, device=self._device)

    def seed(self, name: str) -> int:
        """See `Uniform`."""
        return int(torch.randint(1 << 62, ()))
