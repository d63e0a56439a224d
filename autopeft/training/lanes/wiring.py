"""Wiring: operators are called at their sites by forward hooks, which are removed again.

At a linear map, the operators of its sites (several, where the map is fused) add to their slice of
the output; at a norm, to all of it. At a sub-layer, the input is kept when it enters the first map
(`query`, `up`) and the operators add to the output of the last one (`output`, `down`): before the
residual, whatever the backbone does with norms.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autopeft.backbone.anatomy import ENTRANCE, EXIT, Anatomy, Site
from autopeft.methods.lane_operator import Call, LaneOperator, Place
from autopeft.training.lanes.members import Members
from autopeft.training.lanes.stream import Stream


@dataclass(frozen=True)
class Placed:
    """An operator, where it sits, and who its members are."""

    operator: LaneOperator
    place: Place
    members: Members

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the operator adds, computed in its own type (or autocast), not the backbone's.

        Args:
            x: Its members' part of the site's input, [k, B, T, d_in].
            y: The same of its output, [k, B, T, d_out].
            call: The pass it runs in.
        """
        held = next(self.operator.parameters())
        dtype, device = held.dtype, held.device.type
        if not (self.operator.products_only and torch.is_autocast_enabled(device)):
            x, y = x.to(dtype), y.to(dtype)
        delta = self.operator.delta(x, y, call)
        if call.gains is None:
            return delta
        gains = call.gains[self.members.index, self.place.layer]
        return delta * gains.to(dtype).view(-1, 1, 1, 1)

    def unread(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """What stands for an input or output [n, B, T, d] of which it reads the shape alone."""
        return like.new_empty((len(self.members.positions), *shape[1:]), device="meta")


def wire(
    model: nn.Module, anatomy: Anatomy, placed: Sequence[Placed], stream: Stream
) -> list[RemovableHandle]:
    """Hook all linear and sub-layer operators into the base model; handles remove them.

    Linear hooks are made first: at a map that is also a sub-layer's exit, a sub-layer operator
    reads an output that holds the linear operators' updates.
    """
    handles = []
    at_module: dict[str, list[tuple[Site, Placed]]] = defaultdict(list)
    at_sublayer: dict[tuple[int, str], list[Placed]] = defaultdict(list)
    for item in placed:
        layer, where = item.place.layer, item.place.site
        if item.operator.hook == "linear":
            site = anatomy.site(layer, where)
            at_module[site.module].append((site, item))
        elif item.operator.hook == "norm":
            norm = anatomy.layers[layer].norms[where]
            whole = Site(layer, where, norm.module, norm.width, norm.width)
            at_module[norm.module].append((whole, item))
        elif item.operator.hook == "sublayer":
            at_sublayer[layer, where].append(item)
    for name, sites in at_module.items():
        module = model.get_submodule(name)
        sites.sort(key=lambda item: not item[1].operator.goes_first)
        is_map = all(item.operator.hook == "linear" for _, item in sites)
        hook = _LinearHook(sites, stream, is_map=is_map)
        handles.append(module.register_forward_pre_hook(hook.before))
        handles.append(module.register_forward_hook(hook.after))
    for (layer, name), items in at_sublayer.items():
        entrance = model.get_submodule(anatomy.site(layer, ENTRANCE[name]).module)
        exit_ = model.get_submodule(anatomy.site(layer, EXIT[name]).module)
        own = _SublayerHook((layer, name), items, stream)
        handles.append(entrance.register_forward_pre_hook(own.before, prepend=True))
        handles.append(exit_.register_forward_hook(own.after))
    return handles


class _LinearHook:
    """What sits at a map or a norm, called before it and after it."""

    def __init__(
        self, sites: Sequence[tuple[Site, Placed]], stream: Stream, *, is_map: bool
    ) -> None:
        self._sites, self._stream, self._is_map = sites, stream, is_map
        self._readers = [item.members for _, item in sites if item.operator.reads_x]

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Take the parts of the input that operators read.

        A norm may read its input twice: autograd has to sum the gradients as it would without
        operators, or lanes that have none there would not be their solo runs to the last bit.
        """
        if not self._stream.lanes:
            return None
        x, parts = self._stream.read(args[0], self._readers, by_a_map=_reads_once(module))
        self._stream.inputs[self] = self._stream.split(x).shape, parts
        return (x, *args[1:]) if self._is_map else None

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Add every operator's delta to its slice."""
        lanes = self._stream.lanes
        if not lanes:
            return None
        shape, parts = self._stream.inputs.pop(self)
        x_parts, call = iter(parts), self._stream.running_call()
        for site, item in self._sites:
            y = self._stream.split(output)
            own = y[..., site.start : site.start + site.out_features] if site.fused else y
            reads_x, reads_y = item.operator.reads_x, item.operator.reads_y
            x = next(x_parts) if reads_x else item.unread(shape, output)
            y = item.members.take(own) if reads_y else item.unread(own.shape, output)
            with self._stream.casting(output.device):
                delta = item.delta(x, y, call)
            output = item.members.added(output, delta, lanes, site.start)
        return output


class _SublayerHook:
    """What sits at a sub-layer, called before its first map and after its last one."""

    def __init__(self, key: tuple[int, str], items: Sequence[Placed], stream: Stream) -> None:
        self._key, self._items, self._stream = key, items, stream
        self._readers_of_x = [item.members for item in items if item.operator.reads_x]
        self._readers_of_y = [item.members for item in items if item.operator.reads_y]

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Take the parts of the sub-layer's input; of several calls, of the first one's."""
        if not self._stream.lanes or self._key in self._stream.inputs:
            return None
        readers = self._readers_of_x
        x, parts = self._stream.read(args[0], readers, by_a_map=_reads_once(module))
        self._stream.inputs[self._key] = self._stream.split(x).shape, parts
        return (x, *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Add every operator's delta, all computed from the same output, to a copy of it."""
        if not self._stream.lanes:
            return None
        shape, x_parts = self._stream.inputs.pop(self._key)
        output, y_parts = self._stream.read(output, self._readers_of_y)
        of_x, of_y, made = iter(x_parts), iter(y_parts), self._stream.split(output).shape
        call, deltas = self._stream.running_call(), []
        with self._stream.casting(output.device):
            for item in self._items:
                reads_x, reads_y = item.operator.reads_x, item.operator.reads_y
                x = next(of_x) if reads_x else item.unread(shape, output)
                y = next(of_y) if reads_y else item.unread(made, output)
                deltas.append(item.delta(x, y, call))
        total = output.clone()  # the operators' own inputs are kept for the backward pass
        for item, delta in zip(self._items, deltas, strict=True):
            total = item.members.added(total, delta, self._stream.lanes, 0)
        return total


def _reads_once(module: nn.Module) -> bool:
    """Whether nothing but its own product reads what a linear map is given.

    `peft` types put a forward of their own there, in which others may.
    """
    return "forward" not in vars(module)
