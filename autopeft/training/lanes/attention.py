"""Prefixes and dropout inside attention, through transformers' attention interface.

`ATTENTION` is registered as an attention implementation (scaled dot-product attention with the
stream's prefixes put before keys and values) together with a mask function: an implementation
without one would get no mask, silently wrong on padded batches. It is transformers' own, except
that masks on a GPU are made without a look at whether the batch is padded, for which the host
would wait.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from autopeft.backbone.structure import BEYOND_SDPA
from autopeft.errors import BackboneError, Fault
from autopeft.methods.aligner import AlignerOperator
from autopeft.methods.lane_operator import LaneOperator
from autopeft.methods.prefix import PrefixOperator
from autopeft.training.lanes.members import Members
from autopeft.training.lanes.scaled_products import (
    Apart,
    Asked,
    additive,
    answered,
    full_mask,
    rows_of,
    whole_vectors,
)
from autopeft.training.lanes.slots import LayerSlots
from autopeft.training.lanes.stream import Stream

ATTENTION = "autopeft_lanes"
_BINDING = "autopeft_attention"


class Taken(Exception):  # noqa: N818
    """Ends a layer's run at its attention, once keys and values are there."""


class LayerAttention:
    """What lanes add to one layer's attention: prefixes, aligners, prompts, shared dropout.

    It also lets a layer be run in two parts: up to its keys and values (`taking`), and again, on
    fewer tokens, with these keys and values in place of its own (`giving`).

    Args:
        name: Names the draws of its dropout.
        operators: Prefix and aligner operators with their members.
        stream: Tells which lanes run.
        layer: The layer's index.
        dropout: Rate at which attention probabilities are dropped in training.
        slots: Where the prompts of its lanes are; None where no lane of the pack has any.
    """

    def __init__(
        self,
        name: str,
        operators: Sequence[tuple[LaneOperator, Members]],
        stream: Stream,
        *,
        layer: int,
        dropout: float = 0.0,
        slots: LayerSlots | None = None,
    ) -> None:
        self._name, self._stream = name, stream
        self._operators = [(o, who) for o, who in operators if isinstance(o, PrefixOperator)]
        self._aligners = [(o, who) for o, who in operators if isinstance(o, AlignerOperator)]
        self._layer, self._dropout, self._slots = layer, dropout, slots
        self._apart: dict[int, Apart] = {}
        self._phase: Literal["whole", "taking", "giving"] = "whole"
        self._taken: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Inside, the attention keeps its keys and values and raises `Taken`."""
        self._phase = "taking"
        try:
            yield
        finally:
            self._phase = "whole"

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Inside, the attention reads the keys and values that were taken."""
        self._phase = "giving"
        try:
            yield
        finally:
            self._phase, self._taken = "whole", None

    def keys_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values in this phase; raises `Taken` where that is all."""
        if self._phase == "taking":
            self._taken = key, value
            raise Taken
        if self._phase == "giving" and self._taken is not None:
            return self._taken
        return key, value

    @property
    def has_prefixes(self) -> bool:
        """Whether a running lane may have a prefix here."""
        return bool(self._operators) and self._stream.lanes > 0

    def keep(self, shape: Sequence[int]) -> Tensor | None:
        """Factors on attention probabilities [n * B, n_heads, T, S], or None without dropout.

        S are the text's keys: what a prefix or a prompt gets is never dropped, since a draw as
        long as the pack's longest one would depend on the pack.
        """
        call, rows = self._stream.call, self._stream.rows
        if not self._dropout or call is None or not call.training:
            return None
        kept = call.uniform(self._name, [rows, *shape[1:]]) >= self._dropout
        return (kept / (1.0 - self._dropout)).repeat(shape[0] // rows, 1, 1, 1)

    @property
    def lanes(self) -> int:
        """Lanes in the running call."""
        return self._stream.lanes

    @property
    def slots(self) -> int:
        """Slots behind the text in the rows of the running lanes."""
        return 0 if self._slots is None or not self._stream.lanes else self._slots.valid.shape[1]

    def text_of(self, query: Tensor, key: Tensor) -> tuple[int, int]:
        """Tokens of the text among those that ask (the first alone, or all), and among keys."""
        asking = query.shape[2]
        return asking - self.slots if asking > 1 else asking, key.shape[2] - self.slots

    def with_slots(self, mask: Tensor, query: Tensor, *, causal: bool) -> Tensor:
        """A mask of the text, for rows with slots; see `LayerSlots.lengthened`.

        Gains multiply what slots get of the text's queries, as those of a prefix.
        """
        call, lanes, slots = self._stream.running_call(), self._stream.lanes, self._slots
        if slots is None or call.mask is None:
            return mask
        whole = query.shape[2] > 1
        seen = mask if mask.dtype == torch.bool else torch.ones_like(mask, dtype=torch.bool)
        seen = slots.lengthened(seen, call.mask, lanes=lanes, whole=whole, causal=causal)
        if mask.dtype == torch.bool and call.gains is None:
            return seen
        bias = additive(seen, query.dtype)
        text, least = bias[:, :, : mask.shape[2]], torch.finfo(bias.dtype).min
        if mask.dtype != torch.bool:
            text[..., : mask.shape[3]] += mask.expand(len(bias), -1, -1, -1)
        if call.gains is not None:
            gains = call.gains[:lanes].gather(1, slots.owner[:lanes, None]).view(-1)
            logs = gains.to(bias.dtype).log().repeat_interleave(len(call.mask))
            text[..., mask.shape[3] :] += logs.view(-1, 1, 1, 1)
        return bias.clamp(min=least)

    def _prefix_gains(self, rows: int) -> Tensor | None:
        """`Call.gains` of the running lanes' prefixes here, once per row, [n * B]; or None."""
        call, lanes = self._stream.call, self._stream.lanes
        if call is None or call.gains is None:
            return None
        return call.gains[:lanes, self._layer].repeat_interleave(rows // lanes)

    def aligned(self, out: Tensor, query: Tensor, scale: float) -> Tensor:
        """Attention's output [n * B, T, n_heads, head_dim] with what aligners add to it.

        Args:
            out: Taken over.
            query: The layer's queries, [n * B, n_heads, T, head_dim].
            scale: On scores.
        """
        lanes, call = self._stream.lanes, self._stream.call
        if not self._aligners or not lanes or call is None:
            return out
        by_lane = query.view(lanes, -1, *query.shape[1:])
        added = torch.zeros_like(by_lane)
        for operator, members in self._aligners:
            own = operator.attended(members.take(by_lane), scale)
            if call.gains is not None:
                gains = call.gains[members.index, self._layer]
                own = own * gains.to(own.dtype).view(-1, 1, 1, 1, 1)
            members.add_(added, own)
        return out + added.flatten(0, 1).transpose(1, 2)

    def prefixed(self, asked: Asked, who: Members, *, causal: bool) -> Asked:
        """What some of the running lanes ask of the text, with their prefixes before it."""
        lanes = self._stream.lanes
        prefixes = self._assembled(asked.key)
        keys, values, valid = (rows_of(each, who, lanes) for each in prefixes)
        gains = self._prefix_gains(len(prefixes[0]))
        gains = None if gains is None else rows_of(gains, who, lanes)
        return asked.rows_of(who, lanes).after(keys, values, valid, causal=causal, gains=gains)

    @property
    def apart(self) -> Apart:
        """The running lanes with a prefix here, and those without; all in one part on a GPU."""
        lanes, device = self._stream.lanes, self._operators[0][1].index.device
        if lanes not in self._apart:
            owners = {position for _, who in self._operators for position in who.positions}
            together = device.type != "cpu"
            self._apart[lanes] = Apart(range(lanes) if together else owners, lanes, device)
        return self._apart[lanes]

    def _assembled(self, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix keys and values for the running lanes, and which of them count.

        Args:
            key: The layer's own keys, [n * B, n_kv_heads, T, head_dim].

        Returns:
            Keys and values [n * B, n_kv_heads, P, head_dim], and bool [n * B, P]; lanes without a
            prefix here, or with a shorter one, have False. P is the longest, see `whole_vectors`.
        """
        lanes, (_, heads, _, width) = self._stream.lanes, key.shape
        rows = key.shape[0] // lanes
        longest = max(operator.valid.shape[1] for operator, _ in self._operators)
        longest = whole_vectors(longest, key.device.type)
        keys = key.new_zeros(lanes, longest, heads * width)
        values = torch.zeros_like(keys)
        valid = torch.zeros(lanes, longest, dtype=torch.bool, device=key.device)
        for operator, members in self._operators:
            length = operator.valid.shape[1]
            own_keys, own_values = operator.keys_values()
            members.add_(keys[:, :length], own_keys.to(keys.dtype))
            members.add_(values[:, :length], own_values.to(keys.dtype))
            valid[members.index, :length] = operator.valid

        def spread(tensor: Tensor) -> Tensor:
            by_head = tensor.view(lanes, longest, heads, width).transpose(1, 2)
            return by_head.repeat_interleave(rows, 0)

        return spread(keys), spread(values), valid.repeat_interleave(rows, 0)


def bind(module: nn.Module, layer: LayerAttention) -> None:
    """Give an attention module what lanes add to it."""
    setattr(module, _BINDING, layer)


def unbind(module: nn.Module) -> None:
    """Take it away."""
    delattr(module, _BINDING)


def lane_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention over the layer's prefixes and its own keys.

    Rows have T tokens of text, or with prompts of lanes T + P; masks and biases come for the text.

    Args:
        module: The calling attention module.
        query: [n * B, n_heads, T, head_dim].
        key: [n * B, n_kv_heads, S, head_dim].
        value: As `key`.
        attention_mask: Bool (True = seen) or additive, [n * B or 1, 1 or n_heads, T, S], or None.
        is_causal: Whether to mask the future where there is no mask; None asks the module.
        position_bias: T5's additive bias [n * B or 1, n_heads, T, S], or None.
        **kwargs: Passed on to transformers (`scaling`, `dropout`, ...).

    Raises:
        BackboneError: It asks for what scaled dot products cannot do (see `BEYOND_SDPA`).
    """
    lost = [name for name in BEYOND_SDPA if kwargs.get(name) is not None]
    if lost:
        given = f"{type(module).__name__} with {', '.join(lost)}"
        raise BackboneError(Fault("attention", "", given, "scaled dot products"))
    layer: LayerAttention | None = getattr(module, _BINDING, None)
    settings = {"is_causal": is_causal, **kwargs}
    if layer is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, position_bias=position_bias, **settings
        )
    key, value = layer.keys_values(key, value)
    causal = _causal(module, is_causal)
    text = layer.text_of(query, key)
    mask, bias, keep = attention_mask, position_bias, layer.keep([*query.shape[:2], *text])
    if mask is None and (layer.slots or keep is not None):
        mask = full_mask(*text, device=query.device, causal=causal)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if layer.slots and mask is not None:
        mask = layer.with_slots(mask.expand(-1, -1, text[0], -1), query, causal=causal)
        more = (0, layer.slots, 0, query.shape[2] - text[0])
        bias = None if bias is None else nn.functional.pad(bias[..., : text[0], : text[1]], more)
        keep = None if keep is None else nn.functional.pad(keep, more, value=1.0)
    asked = Asked(query, key, value, mask, bias, keep)
    if layer.slots and query.device.type == "cpu":
        asked = asked.with_first(layer.slots)
    answer = partial(answered, module, scale=scale, settings=settings)
    if not layer.has_prefixes:
        return layer.aligned(answer(asked), query, scale), None
    owners, others = layer.apart.parts
    outputs = [] if owners is None else [answer(layer.prefixed(asked, owners, causal=causal))]
    outputs += [] if others is None else [answer(asked.rows_of(others, layer.lanes))]
    return layer.aligned(layer.apart.joined(outputs), query, scale), None


def _causal(module: nn.Module, is_causal: bool | None) -> bool:
    return bool(is_causal if is_causal is not None else getattr(module, "is_causal", False))


def looks_at_masks(device: torch.device) -> bool:
    """Whether masks that hide nothing are left out: where it costs nothing to see that they do."""
    return device.type == "cpu"


def lane_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' mask [B, 1, T, S]; whole ones where nobody looks, as in captured passes.

    Args:
        *args: Passed on.
        attention_mask: [B, S], true or 1 for real tokens; None for no padding.
        **kwargs: Passed on.
    """
    if attention_mask is not None and not looks_at_masks(attention_mask.device):
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    return mask


AttentionInterface.register(ATTENTION, lane_attention)
AttentionMaskInterface.register(ATTENTION, lane_mask)
