"""Slots: room behind the text in every row of a pack, for the prompts of its lanes.

Lanes of a pack have rows of one length: T tokens of text and behind them P slots, P the longest
prompt of any lane. Which slots a lane uses in which layer is known beforehand (`valid`), and
attention hides all others. A slot's place in memory is not its position: slot j holds the
(j + 1)-th token before the text, whatever P is, so that nothing of a lane depends on the pack:

- the text does not move, and what reads the first token or the rows' lengths need not know;
- rotary factors of slot j are those of position -(j + 1), since distances alone count;
- dropout is drawn for the text as without slots, and for slots in chunks that do not depend on P.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.pointwise import pointwise
from autopeft.errors import BackboneError, Fault
from autopeft.methods.lane_operator import Uniform
from autopeft.methods.prompt import PromptOperator
from autopeft.training.lanes.wiring import Placed

CHUNK = 8
"""Slots whose draws are made at once."""


@dataclass(frozen=True)
class LayerSlots:
    """The slots of one layer.

    Attributes:
        valid: Which slots hold a token, bool [K, P].
        owner: The layer from which each lane's tokens come, int64 [K]; 0 where there are none.
        fresh: Whether they come from this one, bool [K].
    """

    valid: Tensor
    owner: Tensor
    fresh: Tensor

    def lengthened(
        self, mask: Tensor, text: Tensor, *, lanes: int, whole: bool, causal: bool
    ) -> Tensor:
        """The mask of rows with slots.

        Text sees the slots of its lane. Slots see those before them, and themselves always, so
        that an empty one has something to see; but in a decoder they see all of the text.

        Args:
            mask: Of the text, bool [R, h, Q, T], R = 1 or n * B, Q = T or 1.
            text: Which tokens are real, [B, T].
            lanes: n.
            whole: Whether slots ask too, or the first token alone.
            causal: Whether tokens see earlier ones alone.

        Returns:
            Bool [n * B, h, Q (+ P), T + P].
        """
        rows, heads = lanes * len(text), mask.shape[1]
        valid = self.valid[:lanes].to(mask.device).repeat_interleave(len(text), 0)
        size = valid.shape[1]
        above = torch.cat(
            [
                mask.expand(rows, *mask.shape[1:]),
                valid[:, None, None].expand(rows, heads, mask.shape[2], size),
            ],
            dim=3,
        )
        if not whole:
            return above
        one = torch.ones(size, size, dtype=torch.bool, device=mask.device)
        earlier = one.triu() if causal else one
        among = valid[:, None, :] & earlier | torch.eye(size, dtype=torch.bool, device=mask.device)
        real = (text > 0).repeat(lanes, 1)[:, None, :].expand(rows, size, text.shape[1])
        below = torch.cat([torch.zeros_like(real) if causal else real, among], dim=2)
        return torch.cat([above, below[:, None].expand(rows, heads, *below.shape[1:])], dim=2)


class Slots:
    """The slots of a pack.

    Args:
        placed: The pack's operators.
        lanes: K.
        layers: Of the backbone.
        device: Of the pack.

    Attributes:
        count: P; 0 where no lane has a prompt.
    """

    def __init__(
        self,
        placed: Sequence[Placed],
        *,
        lanes: int,
        layers: int,
        device: torch.device | None = None,
    ) -> None:
        prompts = [
            (item.place.layer, item.operator)
            for item in placed
            if isinstance(item.operator, PromptOperator)
        ]
        self.count = max((max(operator.lengths) for _, operator in prompts), default=0)
        lengths = torch.zeros(layers, lanes, dtype=torch.long)
        owner, fresh = torch.zeros_like(lengths), torch.zeros_like(lengths, dtype=torch.bool)
        for first, operator in sorted(prompts, key=lambda each: each[0]):
            for member, length in zip(operator.members, operator.lengths, strict=True):
                if fresh[first, member]:
                    raise _two_prompts(first)
                lengths[first:, member], owner[first:, member] = length, first
                fresh[first, member] = True
        valid = torch.arange(self.count) < lengths.unsqueeze(2)
        parts = (part.to(device) for part in (valid, owner, fresh))
        self._layers = [LayerSlots(*each) for each in zip(*parts, strict=True)]

    def at(self, layer: int) -> LayerSlots | None:
        """Those of a layer; None where the pack has none."""
        return self._layers[layer] if self.count else None

    def uniform(self, uniform: Uniform, tokens: int) -> Uniform:
        """Draws for rows of so many tokens of text, and slots."""
        return _SlotUniform(uniform, tokens, self.count) if self.count else uniform

    def padded(self, hidden: Tensor) -> Tensor:
        """[B, T, d] -> [B, T + P, d], with empty slots."""
        return functional.pad(hidden, (0, 0, 0, self.count)) if self.count else hidden

    def rotated(self, value: Any, tokens: int) -> Any:
        """Arguments of a layer, rotary factors (cosine and sine [B, T, head_dim]) lengthened."""
        if isinstance(value, Mapping):
            return {name: self.rotated(own, tokens) for name, own in value.items()}
        if isinstance(value, list):
            return [self.rotated(own, tokens) for own in value]
        if not (self.count and isinstance(value, tuple) and len(value) == 2):
            return value
        cosine, sine = value
        if not all(isinstance(t, Tensor) and t.dim() == 3 and t.shape[1] == tokens for t in value):
            return value
        return tuple(
            torch.cat([own, before], dim=1)
            for own, before in zip(value, _before(cosine, sine, self.count), strict=True)
        )


def _two_prompts(layer: int) -> BackboneError:
    given = f"two methods that put tokens before the text at layer {layer}"
    return BackboneError(Fault("configuration", "", given, "one of them, or other layers"))


def _before(cosine: Tensor, sine: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rotary factors at positions -1, -2, ..., -count, of those at 0, 1, ..., T - 1.

    The angle at -p is minus that at p; beyond T - 1, angles of positions that are known add up.
    """
    known = cosine.shape[1] - 1
    if known < 1:
        raise RuntimeError("one token alone does not tell how fast positions turn")
    wide = torch.promote_types(cosine.dtype, torch.float32)
    scale = cosine[:, :1].to(wide)
    angle = pointwise(torch.angle, torch.complex(cosine.to(wide), sine.to(wide)))
    at = torch.arange(1, count + 1, device=cosine.device)
    turned = angle[:, -1:] * (at // known)[None, :, None] + angle[:, at % known]
    return (turned.cos() * scale).to(cosine.dtype), -(turned.sin() * scale).to(sine.dtype)


class _SlotUniform:
    """Draws of [B, T + P, d], of which the text's are what they are without slots."""

    def __init__(self, uniform: Uniform, tokens: int, slots: int) -> None:
        self._uniform, self._tokens, self._slots = uniform, tokens, slots

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """See `Uniform`."""
        total = self._tokens + self._slots
        if not per_row or len(shape) != 3 or shape[1] != total:
            return self._uniform(name, shape, per_row=per_row)
        rows, width = shape[0], shape[2]
        parts = [self._uniform(name, [rows, self._tokens, width])]
        for chunk in range(-(-self._slots // CHUNK)):
            parts.append(self._uniform(f"{name}/slots.{chunk}", [rows, CHUNK, width]))
        return torch.cat(parts, dim=1)[:, :total]

    def seed(self, name: str) -> int:
        """See `Uniform`."""
        return self._uniform.seed(name)
