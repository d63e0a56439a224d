"""Operators on the hidden states between layers: at the input of a layer, or at its output."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autopeft.backbone.anatomy import Anatomy
from autopeft.training.lanes.slots import LayerSlots, Slots
from autopeft.training.lanes.stream import Stream
from autopeft.training.lanes.wiring import Placed


class LayerEnds:
    """What lanes change at both ends of one layer.

    Args:
        inputs: Operators at its input.
        outputs: Operators at its output.
        prompts: Operators that put tokens into the slots behind the text, at its input.
        slots: Those of the layer; None where no lane has any.
        stream: Tells which lanes run.
    """

    def __init__(
        self,
        inputs: Sequence[Placed],
        outputs: Sequence[Placed],
        prompts: Sequence[Placed],
        slots: LayerSlots | None,
        stream: Stream,
    ) -> None:
        self._outputs, self._prompts, self._slots = outputs, prompts, slots
        changing = [item for item in prompts if item.operator.changes_text]
        self._inputs, self._stream = [*inputs, *changing], stream

    def enter(self, hidden: Tensor) -> Tensor:
        """The layer's input [n * B, T + P, d] as the running lanes have it."""
        return self._prompted(self._changed(hidden, self._inputs))

    def leave(self, out: Any) -> Any:
        """What the layer returns, its hidden states changed."""
        if not self._outputs:
            return out
        if isinstance(out, tuple):
            return self._changed(out[0], self._outputs), *out[1:]
        return self._changed(out, self._outputs)

    def _prompted(self, hidden: Tensor) -> Tensor:
        """With the tokens of this layer's prompts in their lanes' slots, whatever was there."""
        lanes = self._stream.lanes
        if self._slots is None or not self._prompts or not lanes:
            return hidden
        rows, count = self._stream.split(hidden), self._slots.valid.shape[1]
        text, before = rows[:, :, :-count], rows[:, :, -count:]
        new = before.new_zeros(lanes, count, rows.shape[3])
        for item in self._prompts:
            tokens = item.operator.get_parameter("tokens")
            item.members.add_(new[:, : tokens.shape[1]], tokens.to(new.dtype))
        fresh = self._slots.fresh[:lanes].to(hidden.device).view(-1, 1, 1, 1)
        own = torch.where(fresh, new.unsqueeze(1), before)
        return torch.cat([text, own], dim=2).flatten(0, 1)

    def _changed(self, hidden: Tensor, items: Sequence[Placed]) -> Tensor:
        """With every operator's delta added, all computed from the same hidden states."""
        if not items or not self._stream.lanes:
            return hidden
        call = self._stream.running_call()
        hidden, parts = self._stream.read(hidden, [item.members for item in items])
        with self._stream.casting(hidden.device):
            deltas = [item.delta(x, x, call) for item, x in zip(items, parts, strict=True)]
        total = hidden.clone()  # the operators' own inputs are kept for the backward pass
        for item, delta in zip(items, deltas, strict=True):
            total = item.members.added(total, delta, self._stream.lanes, 0)
        return total


def layer_ends(placed: Sequence[Placed], slots: Slots, stream: Stream) -> dict[int, LayerEnds]:
    """The ends of all layers that operators have changes for.

    Args:
        placed: All operators of a pack.
        slots: Of its rows.
        stream: Tells which lanes run.
    """
    ends = ("input", "output", "prompt")
    by_layer: dict[int, dict[str, list[Placed]]] = defaultdict(lambda: {e: [] for e in ends})
    for item in placed:
        if item.operator.hook in ends:
            by_layer[item.place.layer][item.operator.hook].append(item)
    return {
        layer: LayerEnds(own["input"], own["output"], own["prompt"], slots.at(layer), stream)
        for layer, own in by_layer.items()
    }


def hook_ends(
    model: nn.Module, anatomy: Anatomy, ends: dict[int, LayerEnds]
) -> list[RemovableHandle]:
    """Call them by hooks on the layers, for backbones without gates; handles remove them."""
    handles = []
    for index, own in ends.items():
        layer = model.get_submodule(anatomy.layers[index].module)
        handles.append(layer.register_forward_pre_hook(_Entering(own), with_kwargs=True))
        handles.append(layer.register_forward_hook(_Leaving(own)))
    return handles


class _Entering:
    def __init__(self, ends: LayerEnds) -> None:
        self._ends = ends

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": self._ends.enter(kwargs["hidden_states"])}
        return (self._ends.enter(args[0]), *args[1:]), kwargs


class _Leaving:
    def __init__(self, ends: LayerEnds) -> None:
        self._ends = ends

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self._ends.leave(output)
