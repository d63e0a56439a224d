"""Gates: the trunk runs once, each lane branches off at its own first layer.

transformers' own loop over the layers drives. Each layer *instance*'s `forward` is patched by a
gate that makes up to two calls: the trunk (no gradient, operators off), while some lane still
rides on it, and the lanes that have branched off (with gradient), stacked along the batch. Wrapper
modules would hide attributes that a loop may read, so the module stays what it is.

What the trunk gives at a layer is the frozen backbone's, whatever the lanes are: it may be handed
in (`known`) in place of being computed, and taken out (`wanted`) to be kept or shared. What layers
hand on beside hidden states goes with it, under the keys of `HandedOn`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autopeft.backbone.handed_on import HandedOn
from autopeft.errors import BackboneError, Fault
from autopeft.training.lanes.attention import LayerAttention, Taken
from autopeft.training.lanes.ends import LayerEnds
from autopeft.training.lanes.slots import Slots
from autopeft.training.lanes.stream import Stream


@dataclass(frozen=True)
class Route:
    """The way of one pass through the layers.

    Attributes:
        joining: Lanes that branch off at the input of each layer, and behind the last one,
            [n_layers + 1].
        trunk: Whether the trunk runs through each layer, [n_layers].
        known: Layers whose trunk input is handed in.
        wanted: Layers whose trunk input is taken out.
    """

    joining: tuple[int, ...]
    trunk: tuple[bool, ...]
    known: frozenset[int]
    wanted: frozenset[int]

    @classmethod
    def of(
        cls,
        n_layers: int,
        branch_points: Sequence[int],
        *,
        known: Collection[int] = (),
        wanted: Collection[int] = (),
    ) -> "Route":
        """The cheapest way: the trunk runs from what is known to where it is needed.

        Args:
            n_layers: Layers of the backbone.
            branch_points: Each lane's first layer; `n_layers` for one that trains its head alone.
            known: See the attributes; negative keys are none of layers.
            wanted: See the attributes.
        """
        joining = tuple(branch_points.count(index) for index in range(n_layers + 1))
        trunk, known = [False] * n_layers, [index for index in known if index >= 0]
        for needed in {*branch_points, *wanted}:
            start = max((index for index in known if index <= needed), default=0)
            trunk[start:needed] = [True] * (needed - start)
        return cls(joining, tuple(trunk), frozenset(known), frozenset(wanted))


class TrunkEnd(Exception):  # noqa: N818
    """Ends a pass that has no lanes once the trunk has given all that was wanted: its argument.

    What layers hand on is in it too, as far as it is known.
    """


class Gates:
    """The gates of all layers of a backbone.

    A gate raises `BackboneError` unless its input *is* what the gate below returned: a backbone
    that works between its layers would otherwise be trained wrongly, in silence. Nor does it take
    layers that pass several streams on, as Gemma 3n's (AltUp, arXiv 2301.13310).

    Args:
        layers: The layer modules, bottom up.
        stream: Told which lanes run.
        checkpointing: Keep no activations of the lanes' layers for the backward pass but their
            inputs, and recompute the rest (arXiv 1604.06174).
        last_attention: Of the last layer, where only the first token of its output is read: the
            lanes then run it on that token alone, but for its keys and values.
        ends: What lanes change at the input and the output of layers, by index.
        slots: Room for prompts behind the lanes' text.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        stream: Stream,
        *,
        checkpointing: bool = False,
        last_attention: LayerAttention | None = None,
        ends: Mapping[int, LayerEnds] = MappingProxyType({}),
        slots: Slots | None = None,
    ) -> None:
        self._layers, self._stream, self._checkpointing = layers, stream, checkpointing
        self._ends, self._tokens = ends, 0
        self._slots = Slots([], lanes=0, layers=0) if slots is None else slots
        self._last_attention = last_attention
        self._route = Route.of(len(layers), [])
        self._known: Mapping[int, Tensor] = {}
        self._handed_on, self._handed = HandedOn(), dict[int, Tensor]()
        self._taken: dict[int, Tensor] = {}
        self._joined = 0
        self._trunk: Tensor | None = None
        self._lanes: Tensor | None = None
        self._passed: Tensor | None = None
        self._version = 0
        self._before: list[Callable[..., Any] | None] = []

    def install(self, handed_on: HandedOn) -> None:
        """Patch every layer's forward.

        Args:
            handed_on: What the layers hand on.
        """
        self._handed_on = handed_on
        self._before = [layer.__dict__.get("forward") for layer in self._layers]
        for index, layer in enumerate(self._layers):
            layer.forward = self._gate(index, layer.forward)

    def remove(self) -> None:
        """Give every layer the forward back that it had."""
        for layer, before in zip(self._layers, self._before, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before

    def prepare(self, route: Route, known: Mapping[int, Tensor]) -> None:
        """Before a pass: its way, and what is known of the trunk, see `Pack.forward`."""
        self._route, self._known, self._taken = route, known, {}
        self._handed = {key: known[key] for key in self._handed_on.keys if key in known}
        self._joined, self._trunk, self._lanes, self._passed = 0, None, None, None

    def finish(self) -> None:
        """After a pass: keep no activations."""
        self.prepare(Route.of(len(self._layers), []), {})

    def _gate(self, index: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            if "hidden_states" in kwargs:
                kwargs = dict(kwargs)
                hidden = kwargs.pop("hidden_states")
            else:
                hidden, args = args[0], args[1:]
            self._enter(index, hidden)
            others: tuple[Any, ...] | None = None
            trunk = self._route.trunk[index]
            if trunk:
                others = self._run_trunk(inner, args, kwargs)
                self._handed = self._handed or self._handed_on.by_key(others)
            if self._lanes is not None:
                lane_others = self._run_lanes(index, inner, args, kwargs)
                others = lane_others if others is None else others
            elif not trunk:
                others = self._handed_on.in_place(self._handed)
            return self._leave(index, hidden, others, trunk=trunk)

        return gated

    def _enter(self, index: int, hidden: Tensor) -> None:
        if index == 0:
            if hidden.dim() != 3:
                raise BackboneError(
                    Fault(
                        "backbone",
                        "",
                        f"a model whose layers take hidden states of shape {tuple(hidden.shape)}",
                        "models whose layers take one stream [examples, tokens, hidden size]",
                        "this architecture cannot be trained here; please report it",
                    )
                )
            self._trunk, self._tokens = hidden, hidden.shape[1]
        elif hidden is not self._passed or hidden._version != self._version:
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
        """What happens to the trunk at the input of a layer, or behind the last one."""
        if index in self._route.known:
            self._trunk = self._known[index]
        if index in self._route.wanted:
            self._taken[index] = self._trunk_here()
            if len(self._taken) == len(self._route.wanted) and not any(self._route.joining):
                raise TrunkEnd(self._taken | self._handed)
        count = self._route.joining[index]
        if count:
            trunk = self._trunk_here()
            if self._last_attention is not None and index == len(self._layers):
                trunk = trunk[:, :1]
            if index < len(self._layers):
                trunk = self._slots.padded(trunk)
            new = trunk if count == 1 else trunk.repeat(count, 1, 1)
            self._lanes = new if self._lanes is None else torch.cat([self._lanes, new])
            self._joined += count

    def _trunk_here(self) -> Tensor:
        if self._trunk is None:
            raise RuntimeError("the trunk ended below a branch point")
        return self._trunk

    def _run_trunk(
        self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        with torch.no_grad():
            out = inner(self._trunk_here(), *args, **kwargs)
        self._trunk = _hidden(out)
        return _others(out)

    def _run_lanes(
        self,
        index: int,
        inner: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, ...] | None:
        count, rows = self._joined, self._stream.rows
        args = [_repeated(value, count, rows) for value in args]
        kwargs = {key: _repeated(value, count, rows) for key, value in kwargs.items()}
        call = self._stream.running_call()

        def run(hidden: Tensor) -> Any:
            # A checkpoint runs this again in the backward pass, when the stream says nothing.
            with self._stream.running(count, rows, call):
                ends = self._ends.get(index)
                hidden = hidden if ends is None else ends.enter(hidden)
                if self._last_attention is not None and index == len(self._layers) - 1:
                    out = self._first_token(self._last_attention, inner, hidden, args, kwargs)
                else:
                    out = inner(hidden, *self._lengthened(args), **self._lengthened(kwargs))
                return out if ends is None else ends.leave(out)

        if self._checkpointing and torch.is_grad_enabled():
            out = checkpoint(run, self._lanes, use_reentrant=False, preserve_rng_state=False)
        else:
            out = run(self._lanes)  # type: ignore[arg-type]
        self._lanes = _hidden(out)
        others = _others(out)
        return None if others is None else tuple(_first_lane(o, count, rows) for o in others)

    def _first_token(
        self,
        attention: LayerAttention,
        inner: Callable[..., Any],
        hidden: Tensor,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The last layer's output at the first token: [n * B, 1, d], the same but for rounding.

        Queries, output projection and FFN of all other tokens would be thrown away: two thirds to
        five sixths of the layer, forward and backward.
        """
        with attention.taking():
            try:
                inner(hidden, *self._lengthened(args), **self._lengthened(kwargs))
            except Taken:
                self._stream.inputs.clear()
            else:
                raise RuntimeError("the last layer's attention was not reached")
        tokens = self._tokens
        with attention.giving():
            return inner(
                hidden[:, :1],
                *(_first_of(value, tokens) for value in args),
                **{key: _first_of(value, tokens) for key, value in kwargs.items()},
            )

    def _lengthened(self, given: Any) -> Any:
        """A layer's arguments, for rows with slots."""
        return self._slots.rotated(given, self._tokens)

    def _leave(
        self, index: int, hidden: Tensor, others: tuple[Any, ...] | None, *, trunk: bool
    ) -> Any:
        if not trunk:
            self._trunk = None
        if index == len(self._layers) - 1:
            if self._lanes is not None and self._slots.count:
                self._lanes = self._lanes[:, : self._tokens]
            self._join(index + 1)
            self._passed = self._lanes
        elif trunk:
            self._passed = self._trunk
        else:
            self._passed = hidden if self._lanes is None else self._lanes
        self._version = 0 if self._passed is None else self._passed._version
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


def _first_of(value: Any, tokens: int) -> Any:
    """What a layer reads beside its hidden states, for queries at the first token alone.

    Masks [B, 1, T, T], rotary factors [B, T, head_dim], position ids [B, T].
    """
    if isinstance(value, tuple):
        return tuple(_first_of(item, tokens) for item in value)
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    axis = 2 if value.dim() == 4 else 1
    return value.narrow(axis, 0, 1) if value.shape[axis] == tokens else value


def _first_lane(value: Any, count: int, rows: int) -> Any:
    """What a layer returns beside its hidden states, for one lane's rows."""
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] == count * rows:
        return value[:rows]
    return value
