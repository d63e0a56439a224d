"""Scaled dot products of lanes' rows, with what comes before their keys and what is dropped.

On a CPU a row's sums over keys are taken in one order whatever the longest prefix of the pack:
lanes with a prefix are computed apart from those without, and prefixes are padded (see
`whole_vectors`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from autopeft.training.lanes.members import Members

ALIGNED = 16
"""Numbers of the widest vector that sums keys."""


def whole_vectors(length: int, device: str) -> int:
    """The keys that so many before a layer's own take up: whole vectors on a CPU."""
    return -(-length // ALIGNED) * ALIGNED if device == "cpu" else length


def rows_of(tensor: Tensor, members: Members, lanes: int) -> Tensor:
    """The rows [k * B, ...] of some of `lanes` lanes, of all rows [n * B, ...].

    All lanes' are taken as some are, on a CPU: gradients come back through a slice in an order of
    memory of their own, and a lane by itself is to have the bits that it has among others.
    """
    if tensor.device.type != "cpu" and len(members.positions) == lanes:
        return tensor
    return members.take(tensor.reshape(lanes, -1, *tensor.shape[1:])).flatten(0, 1)


@dataclass(frozen=True)
class Asked:
    """What attention is asked, R rows.

    Attributes:
        query: [R, n_heads, T, head_dim].
        key: [R, n_kv_heads, S, head_dim].
        value: As `key`.
        mask: Bool (True = seen) or additive, [R or 1, 1 or n_heads, T, S], or None.
        bias: Additive, [R or 1, n_heads, T, S], or None.
        keep: Factors on probabilities, [R, n_heads, T, up to S], of the last keys (and of the
            room for prompts, where there is any); or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    bias: Tensor | None
    keep: Tensor | None

    def after(
        self, keys: Tensor, values: Tensor, valid: Tensor, *, causal: bool, gains: Tensor | None
    ) -> "Asked":
        """The same, with keys and values before the own ones, which every query sees.

        Args:
            keys: [R, n_kv_heads, P, head_dim].
            values: As `keys`.
            valid: Which of them there are, bool [R, P].
            causal: Whether to mask the future where there is no mask.
            gains: [R]: each row's factor on what it gets of them before the softmax normalises it,
                or None.
        """
        mask, tokens, own = self.mask, self.query.shape[2], self.key.shape[2]
        if mask is None:
            mask = full_mask(tokens, own, device=keys.device, causal=causal)
        mask = mask if gains is None else additive(mask, self.query.dtype)
        return replace(
            self,
            key=torch.cat([keys, self.key], dim=2),
            value=torch.cat([values, self.value], dim=2),
            mask=_with_prefix(mask, valid, gains),
            bias=None if self.bias is None else nn.functional.pad(self.bias, (valid.shape[1], 0)),
        )

    def with_first(self, count: int) -> "Asked":
        """The same, with the last `count` keys first, and room behind them up to `ALIGNED`."""
        tokens, room = self.key.shape[2] - count, -count % ALIGNED

        def turned(tensor: Tensor | None, fill: float) -> Tensor | None:
            if tensor is None:
                return None
            last = nn.functional.pad(tensor[..., tokens:], (0, room), value=fill)
            return torch.cat([last, tensor[..., :tokens]], dim=-1)

        def moved(tensor: Tensor) -> Tensor:
            last = nn.functional.pad(tensor[:, :, tokens:], (0, 0, 0, room))
            return torch.cat([last, tensor[:, :, :tokens]], dim=2)

        mask = self.mask
        hidden = 0.0 if mask is None or mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return replace(
            self,
            key=moved(self.key),
            value=moved(self.value),
            mask=turned(mask, hidden),
            bias=turned(self.bias, 0.0),
            keep=turned(self.keep, 1.0),
        )

    def rows_of(self, members: Members, lanes: int) -> "Asked":
        """The rows of some of `lanes` lanes."""
        rows = len(self.query)

        def own(tensor: Tensor | None) -> Tensor | None:
            every = tensor is None or len(tensor) != rows
            return tensor if every else rows_of(tensor, members, lanes)  # type: ignore[arg-type]

        return Asked(*(own(each) for each in vars(self).values()))  # type: ignore[arg-type]


def answered(module: nn.Module, asked: Asked, *, scale: float, settings: dict[str, Any]) -> Tensor:
    """The attention's output [R, T, n_heads, head_dim].

    Args:
        module: The calling attention module.
        asked: What it asks.
        scale: On scores.
        settings: Passed on to transformers.
    """
    query, key, value, mask = asked.query, asked.key, asked.value, asked.mask
    if asked.keep is None or mask is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, mask, position_bias=asked.bias, **settings
        )
        return out  # type: ignore[no-any-return]
    scores = additive(mask, query.dtype)
    scores = scores if asked.bias is None else scores + asked.bias
    keep = nn.functional.pad(asked.keep, (key.shape[2] - asked.keep.shape[3], 0), value=1.0)
    return _dropped(query * scale, key, value, scores, keep)


class Apart:
    """Lanes computed in two parts, and put together again.

    Args:
        first: Positions of those in the first part.
        lanes: How many lanes there are.
        device: Of the pack.

    Attributes:
        parts: The lanes of either part; a part may be None.
    """

    def __init__(self, first: Collection[int], lanes: int, device: torch.device) -> None:
        sides = [[n for n in range(lanes) if (n in first) == inside] for inside in (True, False)]
        self.parts = [Members.of(side, device) if side else None for side in sides]
        order = sorted(range(lanes), key=[*sides[0], *sides[1]].__getitem__)
        self._order = torch.tensor(order, device=device)

    def joined(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of those parts that have lanes, each [k * B, ...], as [n * B, ...]."""
        if len(outputs) == 1:
            return outputs[0]
        parts = [part for part in self.parts if part is not None]
        by_lane = [
            out.reshape(len(part.positions), -1, *out.shape[1:])
            for out, part in zip(outputs, parts, strict=True)
        ]
        return torch.cat(by_lane).index_select(0, self._order).flatten(0, 1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def full_mask(tokens: int, seen: int, *, device: torch.device, causal: bool) -> Tensor:
    """A mask that hides the future alone, or nothing: bool [1, 1, tokens, seen]."""
    mask = torch.ones(tokens, seen, dtype=torch.bool, device=device)
    if causal and tokens > 1:
        mask = mask.tril(seen - tokens)
    return mask[None, None]


def _with_prefix(mask: Tensor, valid: Tensor, gains: Tensor | None) -> Tensor:
    """A mask over [prefix, keys]: prefixes are seen by every query of their lane.

    Gains [n * B], with an additive mask only, multiply what a prefix gets before the softmax
    normalises it: log(gain) is added to its scores.
    """
    rows, prefix = valid.shape
    mask = mask.expand(rows, *mask.shape[1:])
    seen = valid[:, None, None, :].expand(rows, *mask.shape[1:3], prefix)
    if mask.dtype != torch.bool:
        hidden = torch.finfo(mask.dtype).min
        bias = torch.zeros_like(seen, dtype=mask.dtype)
        if gains is not None:
            bias += gains.to(mask.dtype).log().clamp(min=hidden).view(-1, 1, 1, 1)
        seen = bias.masked_fill(~seen, hidden)
    return torch.cat([seen, mask], dim=3)


def _dropped(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    """Attention with factors on its probabilities, written out: [n * B, T, n_heads, head_dim]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) + bias
    return (scores.softmax(-1) * keep.to(scores.dtype) @ value).transpose(1, 2).contiguous()
