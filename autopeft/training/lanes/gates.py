"""Gates: the trunk runs once, each lane branches off at its own first layer.

transformers' own loop over the layers drives. Each layer *instance*'s `forward` is patched by a
gate that makes up to two calls: the trunk (no gradient, operators off), while some lane still
rides on it, and the lanes that have branched off (with gradient), stacked along the batch. Wrapper
modules would hide attributes that a loop may read, so the module stays what it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.errors import BackboneError, Fault
from autopeft.training.lanes.stream import Stream


class Gates:
    """The gates of all layers of one pack.

    A gate raises `BackboneError` unless its input *is* what the gate below returned: a backbone
    that works between its layers would otherwise be trained wrongly, in silence.

    Args:
        layers: The layer modules, bottom up.
        branch_points: Each lane's first layer, ascending (stream order); `len(layers)` for a lane
            that trains its head alone.
        stream: Told which lanes run.
    """

    def __init__(
        self, layers: Sequence[nn.Module], branch_points: Sequence[int], stream: Stream
    ) -> None:
        self._layers = layers
        self._joining = [branch_points.count(index) for index in range(len(layers) + 1)]
        self._stream = stream
        self._joined = 0
        self._trunk: Tensor | None = None
        self._lanes: Tensor | None = None
        self._passed: Tensor | None = None
        self._trunk_ends = branch_points[-1]

    def install(self) -> None:
        """Patch every layer's forward."""
        for index, layer in enumerate(self._layers):
            layer.forward = self._gate(index, layer.forward)

    def remove(self) -> None:
        """Give every layer its own forward back."""
        for layer in self._layers:
            del layer.forward

    def _gate(self, index: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            if "hidden_states" in kwargs:
                kwargs = dict(kwargs)
                hidden = kwargs.pop("hidden_states")
            else:
                hidden, args = args[0], args[1:]
            self._enter(index, hidden)
            others: tuple[Any, ...] | None = None
            if index < self._trunk_ends:
                others = self._run_trunk(inner, args, kwargs)
            if self._lanes is not None:
                lane_others = self._run_lanes(inner, args, kwargs)
                others = lane_others if others is None else others
            return self._leave(index, others)

        return gated

    def _enter(self, index: int, hidden: Tensor) -> None:
        if index == 0:
            self._joined, self._trunk, self._lanes = 0, hidden, None
        elif hidden is not self._passed:
            raise BackboneError(
                Fault(
                    "backbone",
                    "",
                    f"a model that works between its layers {index - 1} and {index}",
                    "models whose layers follow each other directly",
                    "this architecture cannot share a trunk; please report it",
                )
            )
        self._join(index)

    def _join(self, index: int) -> None:
        count = self._joining[index]
        if not count:
            return
        if self._trunk is None:
            raise RuntimeError("the trunk ended below a branch point")
        new = self._trunk if count == 1 else self._trunk.repeat(count, 1, 1)
        self._lanes = new if self._lanes is None else torch.cat([self._lanes, new])
        self._joined += count

    def _run_trunk(
        self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        with torch.no_grad():
            out = inner(self._trunk, *args, **kwargs)
        self._trunk = _hidden(out)
        return _others(out)

    def _run_lanes(
        self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        stream = self._stream
        count, rows = self._joined, stream.rows
        stream.lanes = count
        try:
            out = inner(
                self._lanes,
                *(_repeated(value, count, rows) for value in args),
                **{key: _repeated(value, count, rows) for key, value in kwargs.items()},
            )
        finally:
            stream.lanes = 0
        self._lanes = _hidden(out)
        others = _others(out)
        return None if others is None else tuple(_first_lane(o, count, rows) for o in others)

    def _leave(self, index: int, others: tuple[Any, ...] | None) -> Any:
        if index == len(self._layers) - 1:
            self._join(index + 1)
            self._passed = self._lanes
        else:
            self._passed = self._trunk if index < self._trunk_ends else self._lanes
        return self._passed if others is None else (self._passed, *others)


def _hidden(out: Any) -> Tensor:
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden


def _others(out: Any) -> tuple[Any, ...] | None:
    return tuple(out[1:]) if isinstance(out, tuple) else None


def _repeated(value: Any, count: int, rows: int) -> Any:
    """Batch-sized arguments (masks, rotary tuples, position ids) once per lane."""
    if isinstance(value, Tensor):
        if value.dim() >= 2 and value.shape[0] == rows and count > 1:
            return value.repeat(count, *[1] * (value.dim() - 1))
        return value
    if isinstance(value, tuple):
        return tuple(_repeated(item, count, rows) for item in value)
    return value


def _first_lane(value: Any, count: int, rows: int) -> Any:
    """What a layer returns beside its hidden states, for one lane's rows."""
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] == count * rows:
        return value[:rows]
    return value
