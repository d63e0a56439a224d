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
from autopeft.training.lanes.stream import Members, Stream


@dataclass(frozen=True)
class Placed:
    """An operator, where it sits, and who its members are."""

    operator: LaneOperator
    place: Place
    members: Members

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the operator adds, computed in its own type (or autocast), not the backbone's.

        Args:
            x: The site's input, all lanes, [n, B, T, d_in].
            y: The site's output, all lanes, [n, B, T, d_out].
            call: The pass it runs in.
        """
        dtype = next(self.operator.parameters()).dtype
        own_x, own_y = (self.members.take(tensor) for tensor in (x, y))
        if not (self.operator.products_only and torch.is_autocast_enabled(x.device.type)):
            own_x, own_y = own_x.to(dtype), own_y.to(dtype)
        delta = self.operator.delta(own_x, own_y, call)
        if call.gains is None:
            return delta
        gains = call.gains[self.members.index, self.place.layer]
        return delta * gains.to(dtype).view(-1, 1, 1, 1)


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
        handles.append(module.register_forward_hook(_LinearHook(sites, stream)))
    for (layer, name), items in at_sublayer.items():
        entrance = model.get_submodule(anatomy.site(layer, ENTRANCE[name]).module)
        exit_ = model.get_submodule(anatomy.site(layer, EXIT[name]).module)
        key = (layer, name)
        handles.append(entrance.register_forward_pre_hook(_EntranceHook(key, stream)))
        handles.append(exit_.register_forward_hook(_ExitHook(key, items, stream)))
    return handles


class _LinearHook:
    def __init__(self, sites: Sequence[tuple[Site, Placed]], stream: Stream) -> None:
        self._sites, self._stream = sites, stream

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Add every operator's delta to its slice."""
        lanes = self._stream.lanes
        if not lanes:
            return None
        x, call = self._stream.split(args[0]), self._stream.running_call()
        for site, item in self._sites:
            y = self._stream.split(output)
            own = y[..., site.start : site.start + site.out_features] if site.fused else y
            with self._stream.casting(x.device):
                delta = item.delta(x, own, call)
            output = item.members.added(output, delta, lanes, site.start)
        return output


class _EntranceHook:
    def __init__(self, key: tuple[int, str], stream: Stream) -> None:
        self._key, self._stream = key, stream

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the sub-layer's input until its exit; of several calls, the first one's."""
        if self._stream.lanes:
            self._stream.sublayer_inputs.setdefault(self._key, args[0])


class _ExitHook:
    def __init__(self, key: tuple[int, str], items: Sequence[Placed], stream: Stream) -> None:
        self._key, self._items, self._stream = key, items, stream

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Add every operator's delta, all computed from the same output, to a copy of it."""
        if not self._stream.lanes:
            return None
        x = self._stream.split(self._stream.sublayer_inputs.pop(self._key))
        y = self._stream.split(output)
        call = self._stream.running_call()
        with self._stream.casting(x.device):
            deltas = [item.delta(x, y, call) for item in self._items]
        total = output.clone()  # the operators' own inputs are kept for the backward pass
        for item, delta in zip(self._items, deltas, strict=True):
            total = item.members.added(total, delta, self._stream.lanes, 0)
        return total
